/** The answers that curves are made of. */
export type MinMeanMax = [number, number, number];

/** One version, or several neighbours together. */
export interface Point {
  id: string;
  step: number;
  first_step: number;
  num_versions: number;
  created_at: string;
  job_id: string | null;
  kind: string | null;
  metrics: Record<string, MinMeanMax>;
}

export interface ModelHistory {
  data: Point[];
  metrics: string[];
  limits: Record<string, number>;
}

export interface Evaluation {
  id: string;
  split: string;
  step: number;
  metrics: Record<string, number>;
  created_at: string;
}
