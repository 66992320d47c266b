/** A log file of any length: only the lines in sight are loaded. Follows a running program, and finds text. */
import { useCallback, useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { get } from "../../app/api";
import { setQuery } from "../../app/router";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Text } from "../../components/Text";
import { count } from "../../components/format";
import { pieces } from "./ansi";
import { LogSearch } from "./LogSearch";

interface LogViewProps {
  /** Of the run. */
  path: string;
  file: string;
  /** The program is running: look for new lines. */
  follow: boolean;
  /** A line to show; otherwise the end. */
  line: number | null;
}

interface Lines {
  content: string;
  lines: number;
  start_line: number;
  end_line: number;
}

const ROW = 18; // px, as in the stylesheet
const CHUNK = 500; // lines of one request, the most that the API gives
const MAX_CHUNKS = 40; // in memory
const POLL_MS = 2000;
const MAX_SHOWN_CHARS = 2000; // of a line; a download has all of them

export function LogView({ path, file, follow, line }: LogViewProps) {
  const [total, setTotal] = useState<number | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [seen, setSeen] = useState({ first: 0, count: 0 });
  const [, redraw] = useState(0);
  const [tail, setTail] = useState(line === null);
  const box = useRef<HTMLDivElement>(null);
  const chunks = useRef(new Map<number, string[]>());
  const loading = useRef(new Set<number>());

  const ask = useCallback((params: Record<string, string | number>) => get<Lines>(`${path}/aom-log`, { log_file: file, ...params }), [path, file]);
  const measure = useCallback(async () => {
    try {
      const last = await ask({ order: "desc", lines: 1 });
      setTotal(last.end_line);
      setError(null);
    } catch (failure) {
      setError(asError(failure));
    }
  }, [ask]);

  useEffect(() => {
    void measure();
    if (!follow) return;
    const timer = setInterval(() => void measure(), POLL_MS);
    return () => clearInterval(timer);
  }, [measure, follow]);

  const look = useCallback(() => {
    const element = box.current;
    if (!element) return;
    const first = Math.floor(element.scrollTop / ROW);
    setSeen({ first, count: Math.ceil(element.clientHeight / ROW) + 1 });
  }, []);

  function onScroll(): void {
    look();
    const element = box.current;
    if (element) setTail(element.scrollHeight - element.scrollTop - element.clientHeight < 2 * ROW);
  }

  useLayoutEffect(() => {
    const element = box.current;
    if (!element || total === null) return;
    if (tail) element.scrollTop = element.scrollHeight;
    look();
  }, [total]);
  const isMeasured = total !== null;
  useLayoutEffect(() => {
    if (line === null || !isMeasured || !box.current) return;
    box.current.scrollTop = Math.max(0, (line - 1) * ROW - box.current.clientHeight / 3);
    look();
  }, [line, isMeasured]);

  useEffect(() => {
    if (total === null) return;
    const from = Math.floor(seen.first / CHUNK);
    const to = Math.floor(Math.min(total - 1, seen.first + seen.count) / CHUNK);
    for (let chunk = from; chunk <= to; chunk += 1) {
      const expected = Math.min(CHUNK, total - chunk * CHUNK);
      if ((chunks.current.get(chunk)?.length ?? 0) >= expected || loading.current.has(chunk)) continue;
      loading.current.add(chunk);
      ask({ order: "asc", base_line: chunk * CHUNK, lines: CHUNK })
        .then((page) => {
          chunks.current.delete(chunk); // so that the map's order is that of use
          chunks.current.set(chunk, page.content.replace(/\n$/, "").split("\n"));
          const oldest = chunks.current.keys().next().value;
          if (chunks.current.size > MAX_CHUNKS && oldest !== undefined) chunks.current.delete(oldest);
        }, (failure: unknown) => setError(asError(failure)))
        .finally(() => {
          loading.current.delete(chunk);
          redraw((round) => round + 1);
        });
    }
  }, [seen, total]);

  if (total === null) return error ? <ErrorBox error={error} onRetry={() => void measure()} /> : <Loading />;
  const last = Math.min(total, seen.first + seen.count);
  const rows: number[] = [];
  for (let index = seen.first; index < last; index += 1) rows.push(index);
  return (
    <div>
      <div class="row">
        <LogSearch path={path} file={file} onFound={(found) => (setTail(false), setQuery({ line: found }))} />
        <span class="grow" />
        <span class="muted">{count(total)} lines{follow && ", more to come"}</span>
        <button type="button" aria-pressed={tail} onClick={() => {
          setTail(true);
          setQuery({ line: null });
          if (box.current) box.current.scrollTop = box.current.scrollHeight;
        }}>
          {follow ? "Follow" : "To the end"}
        </button>
      </div>
      {error && <ErrorBox error={error} onRetry={() => void measure()} />}
      <div ref={box} class="log" tabIndex={0} role="region" aria-label={`Log ${file}`} onScroll={onScroll}>
        <div class="log-all" style={{ height: `${total * ROW}px` }}>
          <ol class="plain log-lines" start={seen.first + 1} style={{ transform: `translateY(${seen.first * ROW}px)` }}>
            {rows.map((index) => {
              const text = chunks.current.get(Math.floor(index / CHUNK))?.[index % CHUNK];
              return (
                <li key={index} class={index + 1 === line ? "found" : undefined}>
                  <span class="log-number" aria-hidden="true">{index + 1}</span>
                  {text === undefined ? <span class="muted">…</span> : <LogLine text={text} />}
                </li>
              );
            })}
          </ol>
        </div>
      </div>
    </div>
  );
}

function LogLine({ text }: { text: string }) {
  const shown = text.length > MAX_SHOWN_CHARS ? text.slice(0, MAX_SHOWN_CHARS) : text;
  return (
    <span class="log-text" dir="ltr">
      {pieces(shown).map((piece, index) => (
        <span key={index} class={`${piece.color === null ? "" : `ansi-${piece.color}`}${piece.bold ? " ansi-bold" : ""}`}><Text value={piece.text} /></span>
      ))}
      {text.length > MAX_SHOWN_CHARS && <span class="muted"> … and {count(text.length - MAX_SHOWN_CHARS)} more characters</span>}
    </span>
  );
}

function asError(value: unknown): Error {
  return value instanceof Error ? value : new Error(String(value));
}
