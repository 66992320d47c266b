/** The phases of a job: names for people, explanations, and colours. */
import type { Page } from "../app/api";

export interface Stretch {
  id: string;
  name: string;
  reason: string | null;
  attempt: number | null;
  began_at: string;
  ended_at: string;
  seconds: number;
  is_running: boolean;
}

export interface PhaseTotal {
  name: string;
  seconds: number;
  learner_seconds: number;
  engine_seconds: number;
  cpu_seconds: number;
  trained_tokens: number;
  scored_tokens: number;
  engine_scored_tokens: number;
}

export interface JobPhases extends Page<Stretch> {
  job_id: string;
  state: string;
  accepted_at: string;
  ended_at: string | null;
  seconds: number;
  idle_seconds: number;
  totals: PhaseTotal[];
  costs: Record<string, number>;
}

interface Look {
  label: string;
  about: string;
  tone: string;
}

const LOOKS: Record<string, Look> = {
  queued: { label: "Queued", about: "accepted, and not claimed yet or given back", tone: "part-wait-light" },
  wait_lease: { label: "Lost process", about: "its process was lost; the next attempt waits for the lease to run out", tone: "part-wait" },
  prepare: { label: "Prepare", about: "the payload becomes packed rows, on a CPU", tone: "part-5" },
  start_learners: { label: "Start learners", about: "learners are placed and started", tone: "part-wait-light" },
  wait_turn: { label: "Wait for its turn", about: "the learners work for other models", tone: "part-wait" },
  engine_sleep: { label: "Engines change over", about: "engines leave the GPU to the learners, or come back", tone: "part-wait-light" },
  compare_engine: { label: "Compare engine", about: "the engine is compared with the learners on the base model", tone: "part-4" },
  load: { label: "Load", about: "learners load the version", tone: "part-6" },
  score: { label: "Score", about: "logprobs before the first step, by learners and engines", tone: "part-3" },
  plot: { label: "Plot", about: "the packed rows are drawn", tone: "part-4" },
  step: { label: "Gradient steps", about: "learners train", tone: "part-1" },
  check_version: { label: "Check version", about: "the new version is finite", tone: "part-4" },
  seal: { label: "Name version", about: "the new version gets its digest", tone: "part-4" },
  checkpoint: { label: "Write checkpoint", about: "the checkpoint becomes durable", tone: "part-2" },
  publish: { label: "Publish", about: "engines load the new version", tone: "part-4" },
  record: { label: "Record", about: "writes to the store", tone: "part-7" },
  forward_backward: { label: "Forward and backward", about: "gradients for a training client", tone: "part-1" },
  forward: { label: "Forward", about: "logprobs for a training client", tone: "part-3" },
  optim_step: { label: "Optimizer step", about: "a training client's optimizer step", tone: "part-5" },
  save_weights: { label: "Save state", about: "a training client's checkpoint", tone: "part-2" },
  save_for_sampler: { label: "Save for sampling", about: "a training client's version is published", tone: "part-4" },
  load_weights: { label: "Load state", about: "a training client loads a checkpoint", tone: "part-6" },
  idle: { label: "Idle", about: "none of these", tone: "part-idle" },
};

export function lookOf(name: string): Look {
  return LOOKS[name] ?? { label: name, about: "", tone: "part-rest" };
}

/** Money in each currency: EUR 1.23. */
export function money(costs: Record<string, number>): string {
  const entries = Object.entries(costs);
  return entries.length ? entries.map(([currency, value]) => inCurrency(currency, value)).join(" + ") : "–";
}

export function inCurrency(currency: string, value: number): string {
  const digits = value !== 0 && Math.abs(value) < 1 ? 4 : 2;
  return new Intl.NumberFormat("en", { style: "currency", currency, currencyDisplay: "code", maximumFractionDigits: digits }).format(value);
}
