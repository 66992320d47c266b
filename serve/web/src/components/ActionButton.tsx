/** A button for something that takes a moment. It can't be pressed twice, and an error appears beside it. */
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";
import { ErrorBox } from "./ErrorBox";

interface ActionButtonProps {
  onAction: () => Promise<unknown>;
  children: ComponentChildren;
  kind?: "primary" | "danger" | "quiet";
  disabled?: boolean;
  label?: string;
}

export function ActionButton({ onAction, children, kind, disabled = false, label }: ActionButtonProps) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);

  async function act(): Promise<void> {
    setBusy(true);
    setError(null);
    try {
      await onAction();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }

  return (
    <>
      <button type="button" class={kind} disabled={disabled || busy} aria-label={label} aria-busy={busy} onClick={act}>{children}</button>
      {error && <ErrorBox error={error} />}
    </>
  );
}
