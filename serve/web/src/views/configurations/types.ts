/** Saved configurations and their jobs, as their API gives them. Times are milliseconds since 1970. */
import { session } from "../../app/session";
import { segment } from "../../app/router";
import type { Tone } from "../../components/Badge";

export interface ListedConfig {
  config_name: string;
  config_desc: string;
  create_time: number;
  engine_name: string | null;
  engine_version: string | null;
}

/** The settings of a configuration, or of a version of a job. */
export interface RunSettings {
  worker_server_num: number | null;
  app_url: string | null;
  boot_file_url: string | null;
  model_id: number | null;
  parameter: { label: string; value: unknown }[] | null;
  spec_id: number | null;
  data_url: string | null;
  dataset_id: string | null;
  dataset_version_id: string | null;
  train_url: string | null;
  log_url: string | null;
  engine_name: string | null;
  engine_version: string | null;
  spec_code: string | null;
  cpu: string | null;
  gpu_num: number | null;
  gpu_type: string | null;
  [name: string]: unknown;
}

export interface Config extends RunSettings {
  config_name: string;
  config_desc: string;
  create_time: number;
}

export interface ListedJob {
  job_id: number;
  job_name: string;
  job_desc: string;
  version_id: number;
  version_name: string;
  status: number;
  create_time: number;
  start_time: number | null;
  duration: number;
  version_count: number;
  config_name: string | null;
}

export interface JobVersion extends RunSettings {
  version_id: number;
  version_name: string;
  status: number;
  status_name: string;
  error_message_of_job: string | null;
  create_time: number;
  start_time: number | null;
  duration: number;
  config_name: string | null;
}

export const FAILED = 11;
const STATUS: Record<number, [string, Tone]> = {
  1: ["accepted", "warn"],
  4: ["submitting", "warn"],
  5: ["submission failed", "bad"],
  7: ["waiting", "warn"],
  8: ["running", "info"],
  9: ["stopping", "warn"],
  10: ["completed", "good"],
  11: ["failed", "bad"],
  12: ["stopped", "neutral"],
  13: ["cancelled", "neutral"],
  14: ["lost", "bad"],
};

export function statusOf(status: number): { label: string; tone: Tone } {
  const [label, tone] = STATUS[status] ?? [`status ${status}`, "neutral"];
  return { label, tone };
}

/** Whether a status is one of a version that hasn't ended. */
export function isOpen(status: number): boolean {
  return [1, 4, 7, 8, 9].includes(status);
}

/** The path of this API for the project of the key, which is its entity. */
export function projectPath(rest: string): string {
  return `v1/${segment(session.value?.entity ?? "")}/${rest}`;
}

export function isoTime(millis: number | null): string | null {
  return millis === null ? null : new Date(millis).toISOString();
}
