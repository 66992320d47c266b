/** What GET v1/preview/engines and v1/preview/learners return. */
export interface MemoryPlan {
  gpu: number;
  learner: number | null;
  engine: number | null;
  kv_cache: number;
  kv_tokens: number;
  max_loras: number;
  is_shared: boolean;
  takes_turns: boolean;
}

export interface Replica {
  id: string;
  node: string | null;
  condition: "starting" | "running" | "asleep" | "unhealthy" | "not_answering" | "stopping";
  fault: string | null;
  started_at: string | null;
  device: string | null;
  requests_running: number | null;
  requests_waiting: number | null;
  kv_usage: number | null;
  kv_tokens: number | null;
  prefix_hit_rate: number | null;
  slots: number | null;
  slots_used: number | null;
  adapters: number | null;
  adapter_capacity: number | null;
  own_versions: { model_id: string; model: string; step: number }[];
  other_versions: number | null;
  tokens_sampled: number | null;
  tokens_prompt: number | null;
  gpu_memory: { used: number; total: number } | null;
  memory_plan: MemoryPlan | null;
}

export interface Ended {
  id: string;
  node: string;
  started_at: string;
  ended_at: string | null;
  ending: "stopped" | "died" | "lost";
  sentence: string;
}

export interface Engines {
  id: string;
  num_wanted: number;
  num_running: number;
  fault: string | null;
  replicas: Replica[];
  num_restarts: number;
  ended: Ended[];
  settings: {
    replicas: number;
    dtype: string;
    tensor_parallel_size: number;
    max_model_len: number | null;
    max_num_seqs: number | null;
    max_loras: number | null;
    max_cpu_loras: number;
    sleep: boolean;
  };
}

export interface Learner {
  rank: number;
  node: string;
  gpus: string[];
  is_answering: boolean;
  device: string | null;
  tokens_per_s: number | null;
  mfu: number | null;
  memory: { allocated: number; reserved: number; peak: number; total: number } | null;
}

export interface Learners {
  id: string;
  state: "running" | "waiting" | "not_started" | "not_answering";
  sentence: string;
  waiting_for: string | null;
  alarm: string | null;
  last_error: string | null;
  learners: Learner[];
  own_jobs: { job_id: string; model_id: string }[];
  other_jobs: number;
  publications: { count: number; last_s: number | null; p50_s: number | null; p95_s: number | null };
  settings: {
    count: number;
    shard: number;
    jobs_at_once: number;
    device: string;
    dtype: string;
    lora_r: number;
    lora_alpha: number;
    lora_target_modules: string[];
  };
}
