/** OpenAI-style fine-tuning, as its API gives it. Times are seconds since 1970. */
import type { Tone } from "../../components/Badge";

export interface FineTuningJob {
  id: string;
  created_at: number;
  finished_at: number | null;
  error: { code: string; message: string; param: string | null } | null;
  fine_tuned_model: string | null;
  model: string;
  seed: number;
  status: string;
  trained_tokens: number | null;
  training_file: string;
  validation_file: string | null;
  result_files: string[];
  metadata: Record<string, string> | null;
  method: { type: string; [type: string]: unknown };
}

export interface JobEvent {
  id: string;
  created_at: number;
  level: string;
  message: string;
  type: string;
  data: Record<string, unknown> | null;
}

export interface JobCheckpoint {
  id: string;
  created_at: number;
  fine_tuned_model_checkpoint: string;
  metrics: Record<string, number>;
  step_number: number;
}

export interface UploadedFile {
  id: string;
  bytes: number;
  created_at: number;
  expires_at: number | null;
  filename: string;
  purpose: string;
}

const OPEN = ["validating_files", "queued", "running"];
const TONES: Record<string, Tone> = { validating_files: "warn", queued: "warn", running: "info", succeeded: "good", failed: "bad" };

export function isOpen(job: FineTuningJob): boolean {
  return OPEN.includes(job.status);
}

export function toneOf(status: string): Tone {
  return TONES[status] ?? "neutral";
}

export function isoTime(seconds: number | null): string | null {
  return seconds === null ? null : new Date(seconds * 1000).toISOString();
}
