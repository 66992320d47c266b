/** The ledger's responses. */
import type { Page } from "../../app/api";

export interface Amounts {
  requests: number;
  prompt_tokens: number;
  cached_prompt_tokens: number;
  sampled_tokens: number;
  scored_tokens: number;
  engine_scored_tokens: number;
  trained_tokens: number;
  seconds: number;
  learner_seconds: number;
  engine_seconds: number;
  cpu_seconds: number;
  costs: Record<string, number>;
}

export interface UsageItem extends Amounts {
  id: string;
  base_model: string | null;
  day: string | null;
  hour: string | null;
  job: string | null;
  key: string | null;
  key_name: string | null;
  model: string | null;
  model_name: string | null;
  phase: string | null;
  project: string | null;
  version: string | null;
}

export interface UsagePage extends Page<UsageItem> {
  begin: string;
  end: string;
  total: Amounts;
}

export type GroupBy = "model" | "key" | "project" | "job" | "base_model" | "phase" | "version";
export const GROUPS: { by: GroupBy; label: string }[] = [
  { by: "model", label: "Model" },
  { by: "key", label: "Key" },
  { by: "project", label: "Project" },
  { by: "job", label: "Job" },
  { by: "base_model", label: "Base model" },
  { by: "phase", label: "Phase" },
  { by: "version", label: "Version" },
];
