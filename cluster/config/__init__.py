"""The configuration of a Tandem service, from a YAML file and `TANDEM_*` environment variables.

Importing it loads neither torch nor vLLM, so the command line stays quick.
"""

from tandem.cluster.config.base_model import TINY, BaseModelConfig, LogprobsConfig, LoraLimits
from tandem.cluster.config.engine import EngineConfig
from tandem.cluster.config.learners import LearnersConfig
from tandem.cluster.config.observability import AlertRulesConfig, LoggingConfig, TracingConfig, WebhookConfig
from tandem.cluster.config.prices import PricesConfig, RatesConfig
from tandem.cluster.config.service import (
    CoordinatorConfig,
    DeadlinesConfig,
    HttpConfig,
    LimitsConfig,
    ProjectConfig,
    RetentionConfig,
    TrajectoriesConfig,
)
from tandem.cluster.config.tandem_config import TandemConfig
from tandem.cluster.config.tinker import TinkerConfig
from tandem.cluster.config.values import Device

__all__ = [
    "TINY",
    "AlertRulesConfig",
    "BaseModelConfig",
    "CoordinatorConfig",
    "DeadlinesConfig",
    "Device",
    "EngineConfig",
    "HttpConfig",
    "LearnersConfig",
    "LimitsConfig",
    "LoggingConfig",
    "LogprobsConfig",
    "LoraLimits",
    "PricesConfig",
    "ProjectConfig",
    "RatesConfig",
    "RetentionConfig",
    "TandemConfig",
    "TinkerConfig",
    "TracingConfig",
    "TrajectoriesConfig",
    "WebhookConfig",
]
