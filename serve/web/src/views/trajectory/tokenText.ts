/** The text of a token, with whitespace and bytes visible. */
import { visible } from "../../components/Text";

export interface Shown {
  text: string;
  /** Space, newline, bytes and hidden characters look different from letters. */
  special: boolean;
  /** A line ends after it. */
  breaks: boolean;
}

export function shownToken(text: string, bytes: string | null): Shown[] {
  if (bytes !== null) {
    const codes = bytes.match(/../g) ?? [];
    return codes.length ? codes.map((code) => ({ text: `\\x${code.toUpperCase()}`, special: true, breaks: false })) : [{ text: "∅", special: true, breaks: false }];
  }
  if (text === "") return [{ text: "∅", special: true, breaks: false }];
  const parts: Shown[] = [];
  for (const part of visible(text)) {
    if (part.hidden) {
      parts.push({ text: part.text, special: true, breaks: false });
      continue;
    }
    for (const piece of part.text.split(/(\n|\t| )/)) {
      if (piece === "\n") parts.push({ text: "↵", special: true, breaks: true });
      else if (piece === "\t") parts.push({ text: "⇥", special: true, breaks: false });
      else if (piece === " ") parts.push({ text: "·", special: true, breaks: false });
      else if (piece) parts.push({ text: piece, special: false, breaks: false });
    }
  }
  return parts;
}

/** One line, for lists and labels. */
export function tokenLabel(text: string, bytes: string | null = null): string {
  return shownToken(text, bytes).map((part) => part.text).join("");
}
