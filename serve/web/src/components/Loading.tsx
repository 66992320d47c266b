/** In place of what is being loaded. It appears after a moment, so that fast answers don't flicker. */
export function Loading({ label = "Loading…" }: { label?: string }) {
  return <p class="loading muted" role="status">{label}</p>;
}
