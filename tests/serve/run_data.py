"""Runs with calls and checkpoints, as clients and learners make them."""

import torch

from tandem.cluster.calls.call import Anchor, CallResult, SavedState
from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.rl.settings import LoraSettings
from tandem.serve.tinker.store.runs import Start
from tandem.serve.tinker.store.saves import save_options
from tandem.serve.tinker.store.store import TinkerStore

BASE = "tandem/tiny"
LORA = LoraSettings(r=4, alpha=32)
FLAGS = {"seed": 0, "train_mlp": True, "train_attn": True, "train_unembed": False}


class RunData:
    """Makes runs in a store, and does the work of learners on them."""

    def __init__(self, services):
        self._services = services
        self.store = TinkerStore(services.store.database, services.config.tinker)
        self._seqs = {}

    def checkpoint(self, value=1.0):
        """Write a checkpoint and return its digest."""
        state = LearnerState({"w": torch.full((4,), value)}, {"w.exp_avg": torch.zeros(4)})
        return write_checkpoint(self._services.artifacts.checkpoints_dir, state, {"r": 4}, {}).digest

    def run(self, entity="team", start=None, user_metadata=None):
        """Add a session with a run."""
        session = self.store.sessions.create(entity, None, user_metadata=user_metadata)
        begin = None if start is None else Start(start, False)
        lora, initial = LORA.model_dump(mode="json"), self.checkpoint(0.0)
        return self.store.runs.create(entity, None, session.id, 0, BASE, lora, initial, FLAGS, user_metadata, begin)

    def call(self, run, kind, **options):
        """Submit the next call of a run and return its number."""
        seq = self._seqs[run.id] = self._seqs.get(run.id, 0) + 1
        self.store.calls.submit(run.entity, run.id, seq, kind, f"{seq:064x}", None, options, 0)
        return seq

    def answer_all(self, digest=None, base_model=BASE):
        """Answer the calls that wait, as learners do. Return how many."""
        claims, count = self.store.claims, 0
        while run := claims.claim_run(base_model, "learners", 30):
            for call in claims.next_calls(run):
                saved = anchor = None
                if call.kind.startswith("save"):
                    digest = digest or self.checkpoint()
                    saved, anchor = SavedState(digest, 1234, True, True), Anchor(digest, call.seq, True)
                claims.answer(run, call, CallResult(b"{}", saved=saved, anchor=anchor))
                count += 1
            claims.release(run)
        return count

    def save(self, run, name, kind="save_weights", value=1.0, **options):
        """Save a run under a name, and return the checkpoint's path."""
        self.call(run, kind, **save_options(name, **options))
        self.answer_all(self.checkpoint(value))
        return f"tinker://{run.id}/{'weights' if kind == 'save_weights' else 'sampler_weights'}/{name}"
