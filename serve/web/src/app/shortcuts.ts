/** Keyboard shortcuts: one key, or two one after the other ("g o"). Ignored while text is typed. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";

interface Shortcut {
  keys: string;
  label: string;
  run: () => void;
}

export const shortcuts = signal<Shortcut[]>([]);
let pending = "";
let timer = 0;

/** Add a shortcut; returns the function that removes it. */
export function addShortcut(keys: string, label: string, run: () => void): () => void {
  const added = { keys, label, run };
  shortcuts.value = [...shortcuts.peek(), added];
  return () => (shortcuts.value = shortcuts.peek().filter((shortcut) => shortcut !== added));
}

/** Add a shortcut while a view is shown. */
export function useShortcut(keys: string, label: string, run: () => void): void {
  useEffect(() => addShortcut(keys, label, run), [keys, label, run]);
}

function isTyping(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || isTyping(event.target)) return;
  if (document.querySelector("dialog[open]")) return;
  const typed = pending ? `${pending} ${event.key}` : event.key;
  const found = shortcuts.value.findLast((shortcut) => shortcut.keys === typed);
  clearTimeout(timer);
  pending = "";
  if (found) {
    event.preventDefault();
    found.run();
  } else if (shortcuts.value.some((shortcut) => shortcut.keys.startsWith(`${event.key} `))) {
    pending = event.key;
    timer = window.setTimeout(() => (pending = ""), 1500);
  }
});
