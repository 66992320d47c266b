/** Hooks that load from the API: one thing, or a list page by page. A newer request replaces an older one. */
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { get, type Page, type Params } from "./api";

export interface Resource<T> {
  data: T | null;
  error: Error | null;
  loading: boolean;
  /** Load again; what is shown stays until then. */
  reload: () => void;
}

/** Load something when `deps` change. */
export function useResource<T>(load: (signal: AbortSignal) => Promise<T>, deps: readonly unknown[]): Resource<T> {
  const [state, setState] = useState<{ data: T | null; error: Error | null; loading: boolean }>({
    data: null,
    error: null,
    loading: true,
  });
  const [round, setRound] = useState(0);
  const shown = useRef(deps);
  useEffect(() => {
    const controller = new AbortController();
    const keep = deps.every((value, index) => Object.is(value, shown.current[index]));
    shown.current = deps;
    setState((old) => ({ data: keep ? old.data : null, error: null, loading: true }));
    load(controller.signal).then(
      (data) => controller.signal.aborted || setState({ data, error: null, loading: false }),
      (error: unknown) => controller.signal.aborted || setState((old) => ({ ...old, error: asError(error), loading: false })),
    );
    return () => controller.abort();
  }, [...deps, round]);
  return { ...state, reload: useCallback(() => setRound((value) => value + 1), []) };
}

/** GET a path when it or its parameters change. */
export function useGet<T>(path: string, params: Params = {}): Resource<T> {
  return useResource((signal) => get<T>(path, params, { signal }), [path, JSON.stringify(params)]);
}

export interface Pages<T> extends Resource<T[]> {
  items: T[];
  hasMore: boolean;
  /** Load the next page, unless one is being loaded. */
  more: () => void;
}

interface Listed {
  items: unknown[];
  after: string | null;
  hasMore: boolean;
  error: Error | null;
  loading: boolean;
}

const EMPTY: Listed = { items: [], after: null, hasMore: false, error: null, loading: true };

/** GET a list page by page: the first now, others with `more()`. `reload` gets as many items again as are shown. */
export function usePages<T>(path: string, params: Params = {}, limit = 100): Pages<T> {
  const [state, setState] = useState<Listed>(EMPTY);
  const [round, setRound] = useState(0);
  const asked = `${path} ${JSON.stringify(params)} ${limit}`;
  const shown = useRef({ path: "", asked: "", count: 0 });
  const running = useRef<AbortController | null>(null);

  const fetchFrom = useCallback(
    async (from: Listed, count: number): Promise<void> => {
      running.current?.abort();
      const controller = (running.current = new AbortController());
      let { items, after, hasMore } = from;
      try {
        do {
          const page: Page<unknown> = await get(path, { ...params, limit, after }, { signal: controller.signal });
          items = [...items, ...page.data];
          after = page.last_id;
          hasMore = page.has_more;
        } while (hasMore && items.length < count);
        if (controller.signal.aborted) return;
        shown.current.count = items.length;
        setState({ items, after, hasMore, error: null, loading: false });
      } catch (error) {
        if (!controller.signal.aborted) setState((old) => ({ ...old, error: asError(error), loading: false }));
      } finally {
        if (running.current === controller) running.current = null;
      }
    },
    [asked],
  );

  useEffect(() => {
    const same = shown.current.asked === asked;
    const keep = shown.current.path === path; // another filter of the same list: its rows replace the old ones
    shown.current = { path, asked, count: same ? shown.current.count : 0 };
    setState((old) => (keep ? { ...old, error: null, loading: true } : EMPTY));
    void fetchFrom(EMPTY, shown.current.count);
    return () => running.current?.abort();
  }, [asked, round]);

  const more = useCallback(() => {
    if (!state.hasMore || running.current) return;
    setState((old) => ({ ...old, error: null, loading: true }));
    void fetchFrom(state, state.items.length + 1);
  }, [state, fetchFrom]);

  const items = state.items as T[];
  return {
    items,
    data: items,
    hasMore: state.hasMore,
    error: state.error,
    loading: state.loading,
    more,
    reload: useCallback(() => setRound((value) => value + 1), []),
  };
}

function asError(value: unknown): Error {
  return value instanceof Error ? value : new Error(String(value));
}
