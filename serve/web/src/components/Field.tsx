/** A labelled input, with a hint. */
import { cloneElement, type ComponentChildren, type VNode } from "preact";
import { useId } from "preact/hooks";

interface FieldProps {
  label: string;
  hint?: ComponentChildren;
  /** The input. */
  children: VNode<{ "aria-describedby"?: string }>;
}

export function Field({ label, hint, children }: FieldProps) {
  const id = useId();
  return (
    <div class="field">
      <label>
        <span class="label">{label}</span>
        {hint ? cloneElement(children, { "aria-describedby": id }) : children}
      </label>
      {hint && <span id={id} class="hint muted">{hint}</span>}
    </div>
  );
}
