"""The errors of the algorithm layer.

Every message says what is wrong, where, and what to do. All errors can be pickled with their fields, to cross process
boundaries.
"""


class RLError(Exception):
    """Root of all errors that tandem.rl raises deliberately."""


class ConfigError(RLError, ValueError):
    """A training option with an invalid value.

    Attributes:
        field: name of the option in TrainingConfig.
        reason: what is wrong with its value and what to do.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class AdapterError(RLError, ValueError):
    """An adapter in PEFT's format that can't be a policy version.

    Attributes:
        file: the faulty file.
        field: the faulty part of it: a field of the configuration, or a tensor; None for the file as a whole.
        reason: what is wrong and what to do.
    """

    def __init__(self, file: str, field: str | None, reason: str) -> None:
        super().__init__(file, field, reason)
        self.file = file
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.file}{f': {self.field}' if self.field else ''}: {self.reason}"


class TrajectoryError(RLError, ValueError):
    """A trajectory that can't be trained on exactly as it was sampled.

    Attributes:
        group: index of the trajectory group in the job.
        trajectory: index of the trajectory in its group.
        history: 0 for the trajectory's own messages, k for additional_histories[k - 1].
        turn: index in messages_and_choices or of the exchange, or None for the history as a whole.
        reason: what is wrong and what to do.
        field: the faulty part of the turn or history, like ("token_ids", 3); () for all of it.
        protocol: the list of exchanges that has the turn, or None for messages_and_choices.
    """

    def __init__(
        self,
        group: int,
        trajectory: int,
        history: int,
        turn: int | None,
        reason: str,
        field: tuple[str | int, ...] = (),
        protocol: str | None = None,
    ) -> None:
        super().__init__(group, trajectory, history, turn, reason, field, protocol)
        self.group = group
        self.trajectory = trajectory
        self.history = history
        self.turn = turn
        self.reason = reason
        self.field = field
        self.protocol = protocol

    @property
    def location(self) -> tuple[str | int, ...]:
        """Path of the faulty part in the request, as in a validation error."""
        path: tuple[str | int, ...] = ("trajectory_groups", self.group, "trajectories", self.trajectory)
        if self.history > 0:
            path += ("additional_histories", self.history - 1)
        if self.turn is not None:
            path += (*(("messages_and_choices",) if self.protocol is None else ("exchanges", self.protocol)), self.turn)
        return path + self.field

    def __str__(self) -> str:
        where = f"group {self.group}, trajectory {self.trajectory}"
        if self.history > 0:
            where += f", additional history {self.history - 1}"
        if self.turn is not None:
            where += f", turn {self.turn}" if self.protocol is None else f", {self.protocol} exchange {self.turn}"
        if self.field:
            where += f", {'.'.join(map(str, self.field))}"
        return f"{where}: {self.reason}"


class PolicyError(RLError, ValueError):
    """A base model, adapter or device that a policy doesn't support."""


class StepError(RLError, ArithmeticError):
    """A gradient step that would destroy the policy, or did. Load a version before the next step."""


class OutOfMemoryError(RLError, MemoryError):
    """A gradient step or a scoring for which a device has too little memory. The policy is as before.

    Attributes:
        said: what torch said: how much was asked for, and how much was free.
        row_tokens: tokens of the packed row that didn't fit, 0 if it was another learner's.
        chunk_size: tokens whose logits were in memory at once.
    """

    def __init__(self, said: str, row_tokens: int = 0, chunk_size: int = 0) -> None:
        super().__init__(said, row_tokens, chunk_size)
        self.said, self.row_tokens, self.chunk_size = said, row_tokens, chunk_size

    def __str__(self) -> str:
        return f"A packed row of {self.row_tokens} tokens doesn't fit into the memory of its device ({self.said})."


class CheckpointError(RLError, OSError):
    """A checkpoint that can't be written, read or trusted."""


class LoraLimitError(PolicyError):
    """LoRA settings that a base model doesn't allow.

    Attributes:
        field: the setting.
        reason: what is wrong with its value, and the limit.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"
