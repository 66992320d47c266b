/** A search field that reports what was typed once typing pauses. */
import { useEffect, useRef, useState } from "preact/hooks";

interface SearchFieldProps {
  label: string;
  value: string;
  onSearch: (value: string) => void;
  maxLength?: number;
}

const PAUSE_MS = 200;

export function SearchField({ label, value, onSearch, maxLength = 256 }: SearchFieldProps) {
  const [typed, setTyped] = useState(value);
  const timer = useRef(0);
  useEffect(() => setTyped(value), [value]);
  useEffect(() => () => clearTimeout(timer.current), []);
  function type(next: string): void {
    setTyped(next);
    clearTimeout(timer.current);
    timer.current = window.setTimeout(() => onSearch(next), PAUSE_MS);
  }
  return (
    <input
      class="search"
      type="search"
      aria-label={label}
      placeholder={label}
      maxLength={maxLength}
      value={typed}
      onInput={(event) => type(event.currentTarget.value)}
    />
  );
}
