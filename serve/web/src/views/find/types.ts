import type { Page } from "../../app/api";
import type { Summary } from "../trajectory/types";

export interface Excerpt {
  place: string;
  before: string;
  match: string;
  after: string;
}

export interface Trajectory extends Summary {
  model: string;
  excerpt: Excerpt | null;
}

export interface TrajectoryPage extends Page<Trajectory> {
  total: number | null;
  still_indexing: { jobs: number; logs: number };
  progress: { searched: number; of: number; unreadable: number } | null;
  notes: string[];
}
