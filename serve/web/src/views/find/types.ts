import type { Page } from "../../app/api";

export interface Excerpt {
  place: string;
  before: string;
  match: string;
  after: string;
}

export interface Trajectory {
  id: string;
  job_id: string | null;
  log_id: string | null;
  model_id: string;
  model: string;
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
  excerpt: Excerpt | null;
}

export interface TrajectoryPage extends Page<Trajectory> {
  total: number | null;
  still_indexing: { jobs: number; logs: number };
  progress: { searched: number; of: number; unreadable: number } | null;
  notes: string[];
}
