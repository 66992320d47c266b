/** A time as its age, kept up to date, with the whole date as its title. */
import { signal } from "@preact/signals";
import { ago } from "./format";

/** The present, in ms; it moves every 10 s. */
export const now = signal(Date.now());
setInterval(() => (now.value = Date.now()), 10_000);

export function Time({ at }: { at: string | null | undefined }) {
  if (!at) return <span class="muted">–</span>;
  const date = parsed(at);
  return <time dateTime={date.toISOString()} title={date.toLocaleString()}>{ago(date, Math.max(now.value, Date.now()))}</time>;
}

/** Times of the service are in UTC, also those without a zone. */
export function parsed(text: string): Date {
  return new Date(/Z$|[+-]\d\d:?\d\d$/.test(text) ? text : `${text}Z`);
}
