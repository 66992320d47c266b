/** An alert as the API returns it. */
export interface Alert {
  id: string;
  kind: string;
  state: "open" | "resolved";
  severity: "critical" | "warning";
  scope: "entity" | "service";
  title: string;
  cause: string;
  remedy: string;
  links: Links;
  opened_at: string;
  resolved_at: string | null;
  acknowledged_at: string | null;
  acknowledged_by: string | null;
  /** For admins. */
  deliveries: Delivery[] | null;
}

export interface Links {
  model_id: string | null;
  model: string | null;
  job_id: string | null;
  step: number | null;
  best_step: number | null;
  base_model: string | null;
}

export interface Delivery {
  id: string;
  event: "opened" | "resolved";
  host: string;
  state: "pending" | "delivered" | "failed";
  num_attempts: number;
  error: string | null;
}
