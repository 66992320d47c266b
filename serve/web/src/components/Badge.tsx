/** A word in a box: a role, a state. The word says it; the colour repeats it. */
import type { ComponentChildren } from "preact";

export type Tone = "neutral" | "good" | "warn" | "bad" | "info";

export function Badge({ children, tone = "neutral" }: { children: ComponentChildren; tone?: Tone }) {
  return <span class={`badge ${tone}`}>{children}</span>;
}

const STATES: Record<string, Tone> = {
  queued: "warn",
  running: "info",
  training: "info",
  succeeded: "good",
  failed: "bad",
  cancelled: "neutral",
  idle: "neutral",
  waiting: "warn",
  unloaded: "neutral",
};

/** The state of a job, or of a run. */
export function StateBadge({ state }: { state: string }) {
  return <Badge tone={STATES[state] ?? "neutral"}>{state}</Badge>;
}
