/** The tree of versions as the API gives it. */
export interface TreeParent {
  model_id: string;
  step: number;
  model: string | null;
  exists: boolean;
}

export interface TreeVersion {
  step: number;
  origin: "initial" | "job" | "run" | "import" | "fork" | "unknown";
  digest: string | null;
  created_at: string | null;
  job_id: string | null;
  job_kind: string | null;
  run_id: string | null;
  checkpoint_name: string | null;
  imported_from: Record<string, unknown> | null;
  metrics: Record<string, number>;
  has_optimizer: boolean;
  kept_at: string | null;
  is_newest: boolean;
  is_best: boolean;
  forks: { model_id: string; model: string; deleted: boolean }[];
}

export interface TreeItem {
  id: string;
  first_step: number;
  last_step: number;
  count: number;
  state: "live" | "retired" | "deleted";
  reason: string | null;
  parent: TreeParent | null;
  version: TreeVersion | null;
  lowest_reward: number | null;
  highest_reward: number | null;
}
