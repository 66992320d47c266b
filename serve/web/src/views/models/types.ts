/** A model as the API describes it. */
export interface Lora {
  r: number;
  alpha: number;
  target_modules: string[];
  seed: number;
}

export interface Model {
  id: string;
  entity: string;
  project: string;
  name: string;
  base_model: string;
  /** The newest version. */
  step: number;
  created_at: string;
  lora: Lora | null;
  origin: { kind: string; model?: string; model_id?: string; step?: number; optimizer?: boolean; run?: string } | null;
}

/** Return the model's name for completions, of one version if a step is given. */
export function nameOf(model: Pick<Model, "entity" | "project" | "name">, step?: number): string {
  return `${model.entity}/${model.project}/${model.name}${step === undefined ? "" : `:step${step}`}`;
}
