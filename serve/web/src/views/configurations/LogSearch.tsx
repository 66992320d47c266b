/** Finds text in a log file: the service searches it, so that the page need not load it. */
import { useState } from "preact/hooks";
import { get } from "../../app/api";
import { ErrorBox } from "../../components/ErrorBox";

interface Found {
  matches: { line: number; content: string }[];
  end_line: number;
  is_end: boolean;
}

interface State {
  text: string;
  lines: number[];
  at: number;
  endLine: number;
  isEnd: boolean;
}

const NOTHING: State = { text: "", lines: [], at: -1, endLine: 0, isEnd: false };

export function LogSearch({ path, file, onFound }: { path: string; file: string; onFound: (line: number) => void }) {
  const [text, setText] = useState("");
  const [state, setState] = useState(NOTHING);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error | null>(null);

  async function move(step: number): Promise<void> {
    if (!text || busy) return;
    let next = state.text === text ? state : { ...NOTHING, text };
    const at = next.at + step;
    setBusy(true);
    setError(null);
    try {
      while (at >= next.lines.length && !next.isEnd) {
        const found = await get<Found>(`${path}/log/search`, { log_file: file, text, base_line: next.endLine });
        next = { ...next, lines: [...next.lines, ...found.matches.map((match) => match.line)], endLine: found.end_line, isEnd: found.is_end };
      }
      next = { ...next, at: Math.min(Math.max(0, at), next.lines.length - 1) };
      setState(next);
      const line = next.lines[next.at];
      if (line !== undefined) onFound(line);
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }

  const searched = state.text !== "" && state.text === text;
  return (
    <form class="row log-search" role="search" onSubmit={(event) => (event.preventDefault(), void move(1))}>
      <input type="search" aria-label="Find in the log" placeholder="Find in the log" maxLength={256} value={text} onInput={(event) => setText(event.currentTarget.value)} />
      <button type="submit" disabled={!text || busy}>{searched ? "Next" : "Find"}</button>
      {searched && state.lines.length > 0 && <button type="button" disabled={busy || state.at <= 0} onClick={() => void move(-1)}>Previous</button>}
      <span role="status" class="muted">
        {busy ? "Searching…" : !searched ? "" : state.lines.length === 0 ? "Not in this log" : `${state.at + 1} of ${state.lines.length}${state.isEnd ? "" : " or more"}`}
      </span>
      {error && <ErrorBox error={error} />}
    </form>
  );
}
