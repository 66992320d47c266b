/** What the columns of the chart may show. */
import { compact, duration } from "../../components/format";
import { inCurrency } from "../../components/phases";
import type { Amounts } from "./types";

export interface Measure {
  name: string;
  label: string;
  of: (amounts: Amounts) => number;
  format: (value: number) => string;
}

const TOKENS: Measure[] = [
  { name: "sampled", label: "Sampled tokens", of: (one) => one.sampled_tokens, format: compact },
  { name: "trained", label: "Trained tokens", of: (one) => one.trained_tokens, format: compact },
  { name: "learner", label: "Learner time", of: (one) => one.learner_seconds, format: duration },
  { name: "engine", label: "Engine time", of: (one) => one.engine_seconds, format: duration },
  { name: "prompt", label: "Prompt tokens", of: (one) => one.prompt_tokens, format: compact },
];

/** Money in each currency of the bill first. */
export function measures(total: Amounts): Measure[] {
  const costs = Object.keys(total.costs).map((currency) => ({
    name: currency,
    label: `Cost in ${currency}`,
    of: (one: Amounts) => one.costs[currency] ?? 0,
    format: (value: number) => inCurrency(currency, value),
  }));
  return [...costs, ...TOKENS];
}
