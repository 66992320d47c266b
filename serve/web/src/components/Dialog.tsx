/** A modal dialog, closed by Escape, a click beside it, or its button. The browser keeps the focus inside. */
import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";

interface DialogProps {
  title: string;
  onClose: () => void;
  children: ComponentChildren;
}

export function Dialog({ title, onClose, children }: DialogProps) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    dialog.current?.showModal();
    return () => before instanceof HTMLElement && before.focus();
  }, []);
  return (
    <dialog
      ref={dialog}
      aria-labelledby={id}
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && dialog.current?.close()}
    >
      <div class="dialog-content">
        <header class="row">
          <h2 id={id} class="grow">{title}</h2>
          <button type="button" class="quiet" onClick={() => dialog.current?.close()}>Close</button>
        </header>
        {children}
      </div>
    </dialog>
  );
}

interface ConfirmProps extends DialogProps {
  action: string;
  onConfirm: () => void;
  busy?: boolean;
}

/** A question before something that can't be undone. */
export function Confirm({ action, onConfirm, busy = false, children, ...rest }: ConfirmProps) {
  return (
    <Dialog {...rest}>
      {children}
      <div class="row end">
        <button type="button" onClick={rest.onClose}>Cancel</button>
        <button type="button" class="danger" disabled={busy} onClick={onConfirm}>{action}</button>
      </div>
    </Dialog>
  );
}
