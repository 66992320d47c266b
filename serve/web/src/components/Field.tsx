/** A labelled input, with a hint. */
import type { ComponentChildren } from "preact";

export function Field({ label, hint, children }: { label: string; hint?: ComponentChildren; children: ComponentChildren }) {
  return (
    <label class="field">
      <span class="label">{label}</span>
      {children}
      {hint && <span class="hint muted">{hint}</span>}
    </label>
  );
}
