/** A list page by page, with what its pages say beside their items. A search for a text goes on by itself until it has found enough. */
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { get, type Page, type Params } from "../../app/api";

export interface List<T, P extends Page<T>> {
  items: T[];
  /** The first page, with its totals and notes. */
  first: P | null;
  /** The last page. */
  last: P | null;
  error: Error | null;
  loading: boolean;
  hasMore: boolean;
  more: () => void;
  stop: () => void;
  reload: () => void;
}

interface State<T, P> {
  items: T[];
  first: P | null;
  last: P | null;
  error: Error | null;
  loading: boolean;
}

const LIMIT = 100;

export function useList<T, P extends Page<T>>(path: string, params: Params): List<T, P> {
  const empty: State<T, P> = { items: [], first: null, last: null, error: null, loading: true };
  const [state, setState] = useState(empty);
  const [round, setRound] = useState(0);
  const running = useRef<AbortController | null>(null);
  const asked = JSON.stringify([path, params]);

  const fetchFrom = useCallback(
    async (from: State<T, P>): Promise<void> => {
      running.current?.abort();
      const controller = (running.current = new AbortController());
      let now = { ...from, error: null, loading: true };
      const wanted = now.items.length + LIMIT;
      try {
        do {
          const after = now.last?.last_id ?? null;
          const page = await get<P>(path, { ...params, limit: LIMIT, after }, { signal: controller.signal });
          if (controller.signal.aborted) return;
          now = { ...now, items: now.items.concat(page.data), first: now.first ?? page, last: page };
          now.loading = page.has_more && now.items.length < wanted && page.data.length < LIMIT;
          setState(now);
        } while (now.loading);
      } catch (error) {
        const shown = error instanceof Error ? error : new Error(String(error));
        if (!controller.signal.aborted) setState({ ...now, error: shown, loading: false });
      } finally {
        if (running.current === controller) running.current = null;
      }
    },
    [asked],
  );

  useEffect(() => {
    setState(empty);
    void fetchFrom(empty);
    return () => running.current?.abort();
  }, [asked, round]);

  const hasMore = state.last?.has_more ?? false;
  return {
    ...state,
    hasMore,
    more: useCallback(() => {
      if (hasMore && !running.current) void fetchFrom(state);
    }, [state, hasMore, fetchFrom]),
    stop: useCallback(() => {
      running.current?.abort();
      running.current = null;
      setState((old) => ({ ...old, loading: false }));
    }, []),
    reload: useCallback(() => setRound((value) => value + 1), []),
  };
}
