/** Training jobs as the API describes them. */
export interface Job {
  id: string;
  model_id: string;
  kind: string;
  state: "queued" | "running" | "succeeded" | "failed" | "cancelled";
  attempt: number;
  error: string | null;
  waiting_for: string | null;
  step: number | null;
  trained: Record<string, number> | null;
  not_trained: Record<string, number>;
  retokenised_tokens: number | null;
  untrainable_tokens: Record<string, number>;
  warnings: string[];
  cancel_requested: boolean;
  options: Record<string, unknown>;
  num_events: number;
  num_gradient_steps: number;
  created_at: string;
  started_at: string | null;
  ended_at: string | null;
}

export interface JobEvent {
  id: string;
  type: string;
  data: Record<string, unknown>;
  created_at: string;
}

export interface Queue {
  place: number | null;
  waits: boolean;
  cause: string;
  reason: string;
  before: { same_model: string[]; own: string[]; num_own: number; num_others: number };
  lease_expires_at: string | null;
}

export interface Artifact {
  id: string;
  size_bytes: number;
}

export const isOpen = (job: Job): boolean => job.state === "queued" || job.state === "running";
export const shortId = (id: string): string => id.slice(0, 8);

/** Seconds between two times, or until now. */
export function secondsBetween(from: string | null, to: string | null, now: number): number | null {
  if (from === null) return null;
  return Math.max(0, ((to === null ? now : new Date(to).getTime()) - new Date(from).getTime()) / 1000);
}

/** Why trajectories don't train, and what to do. */
export const REASONS: Record<string, string> = {
  empty: "no messages, no choices and no exchanges",
  no_choices: "no sampled choices, only messages",
  no_logprobs: "no logprobs on any choice: sample with logprobs",
  no_tokens: "no sampled tokens",
  alone_in_group: "alone in their group: sample several trajectories per task",
  equal_rewards: "the same reward as all others of the group",
  mean_reward: "a reward that is the mean of the group",
  too_long: "too long: raise packed_sequence_length or sample fewer tokens",
  balanced_away: "an advantage of 0 after advantage_balance",
  no_assistant_message: "no assistant message to train",
};
