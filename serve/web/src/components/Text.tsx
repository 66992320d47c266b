/** Text of users, models and logs. It stays apart from the text around it, and characters that hide or reorder others show as codes. */
import type { JSX } from "preact";

// Controls without tab and newline, bidirectional marks and overrides, zero-width characters, line separators, lone surrogates.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]/gu;

/** Split text into what is shown as it is, and the characters that are shown as codes. */
export function visible(text: string): { text: string; hidden: boolean }[] {
  const parts: { text: string; hidden: boolean }[] = [];
  let end = 0;
  for (const found of text.matchAll(HIDDEN)) {
    if (found.index > end) parts.push({ text: text.slice(end, found.index), hidden: false });
    const code = (found[0].codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0");
    parts.push({ text: `U+${code}`, hidden: true });
    end = found.index + found[0].length;
  }
  if (end < text.length) parts.push({ text: text.slice(end), hidden: false });
  return parts;
}

/** Show text in a line. `max`: characters before it is cut, with all of it as the title. */
export function Text({ value, max }: { value: string; max?: number }): JSX.Element {
  const isCut = max !== undefined && value.length > max;
  const parts = visible(isCut ? `${cut(value, max)}…` : value);
  return (
    <bdi class="text" title={isCut ? plain(cut(value, 1000)) : undefined}>
      {parts.map((part, index) => (part.hidden ? <span key={index} class="hidden-character">{part.text}</span> : part.text))}
    </bdi>
  );
}

/** Return text with hidden characters as codes, for titles and labels, which have no markup. */
export function plain(value: string): string {
  return visible(value).map((part) => (part.hidden ? `⟨${part.text}⟩` : part.text)).join("");
}

/** Show text in lines of its own, as it was written. */
export function TextBlock({ value, label }: { value: string; label?: string }): JSX.Element {
  return (
    <pre class="text-block" dir="auto" tabIndex={0} aria-label={label}>
      <Text value={value} />
    </pre>
  );
}

/** Return the first `max` UTF-16 units, without half a character. */
function cut(value: string, max: number): string {
  const head = value.slice(0, max);
  const last = head.charCodeAt(head.length - 1);
  return last >= 0xd800 && last <= 0xdbff ? head.slice(0, -1) : head;
}
