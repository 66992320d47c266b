/** What the API says about trajectories and their tokens. */
export interface Turn {
  begin: number;
  num_tokens: number;
  index: number;
  policy_version: number | null;
}

export interface Sequence {
  begin: number;
  num_tokens: number;
  num_trained: number;
  history: number;
  advantage: number | null;
  weight: number | null;
  policy_version: number | null;
  gradient_step: number | null;
  turns: Turn[];
}

type Numbers = (number | null)[];

export interface Columns {
  start: number;
  ids: number[];
  texts: string[];
  bytes: (string | null)[];
  mask: boolean[];
  sampling_logprobs: Numbers;
  learner_logprobs: Numbers;
  old_logprobs: Numbers | null;
  ref_logprobs: Numbers | null;
  ratios: Numbers;
}

export interface Range {
  num: number;
  min: number;
  max: number;
  mean: number;
  mean_abs: number;
}

export interface Notable {
  token: number;
  text: string;
  bytes: string | null;
  value: number;
}

export interface TrajectoryTokens {
  id: string;
  job_id: string | null;
  log_id: string | null;
  model_id: string;
  kind: string;
  state: "trained" | "not_trained" | "logged";
  reason: string | null;
  message: string | null;
  made_version: number | null;
  num_tokens: number;
  num_trained: number;
  num_choices_without_ids: number;
  sequences: Sequence[];
  tokens: Columns;
  has_more: boolean;
  logprobs: Range | null;
  differences: Range | null;
  ratios: Range | null;
  notable: { mismatch: Notable[]; improbable: Notable[]; ratio: Notable[] };
}

export interface Summary {
  id: string;
  job_id: string | null;
  log_id: string | null;
  model_id: string;
  split: string;
  group: number;
  index: number;
  reward: number | null;
  first_version: number | null;
  last_version: number | null;
  made_version: number | null;
  num_turns: number;
  num_tokens: number;
  num_tool_calls: number;
  error: string | null;
  metrics: Record<string, number>;
  metadata: Record<string, string>;
  created_at: string;
}

export interface GroupStatistics {
  id: string;
  group: number;
  size: number;
  num_failed: number;
  reward_mean: number | null;
  reward_std_dev: number | null;
  reward_min: number | null;
  reward_max: number | null;
  num_tokens: number;
  trained: boolean | null;
  reason: string | null;
  sentence: string | null;
}

/** Values of a payload, of which nothing is certain. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Whole extends Summary {
  group_statistics: GroupStatistics;
  trajectory: Json;
}
