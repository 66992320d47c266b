/** Copies text. */
import { useState } from "preact/hooks";

export function CopyButton({ text, label = "Copy", of }: { text: string; label?: string; of?: string }) {
  const [state, setState] = useState<"" | "Copied" | "Select it and press Ctrl-C">("");
  async function copy(): Promise<void> {
    setState((await copied(text)) ? "Copied" : "Select it and press Ctrl-C");
    setTimeout(() => setState(""), 2000);
  }
  return (
    <button type="button" class="copy quiet" onClick={copy} aria-label={of && !state ? `${label} ${of}` : undefined}>
      <span aria-live="polite">{state || label}</span>
    </button>
  );
}

/** The clipboard API exists only on https and localhost; the older way works elsewhere. */
async function copied(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "off-screen";
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
