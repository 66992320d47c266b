/** Loads something again and again while the page is looked at. */
import { useEffect } from "preact/hooks";
import type { Resource } from "./resource";

/** Reload `seconds` after the last answer. Hidden pages ask nothing, and reload when they are shown again. */
export function useRefresh<T>(resource: Resource<T>, seconds: number): void {
  const { loading, reload } = resource;
  useEffect(() => {
    if (loading) return undefined;
    const ask = () => document.visibilityState === "visible" && reload();
    const timer = setTimeout(ask, 1000 * seconds);
    document.addEventListener("visibilitychange", ask);
    return () => {
      clearTimeout(timer);
      document.removeEventListener("visibilitychange", ask);
    };
  }, [loading, reload, seconds]);
}
