/** How many alerts are open, for the navigation. Asked for while the page is looked at. */
import { signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { get } from "./api";
import { may, session } from "./session";

export interface AlertCount {
  open: number;
  unacknowledged: number;
}

const PERIOD_MS = 30_000;
/** Null until it is known. */
export const alertCount = signal<AlertCount | null>(null);

/** Ask now, for example after an alert was acknowledged. A failure leaves the old number: views show errors. */
export async function countAlerts(): Promise<void> {
  const asked = session.value?.id;
  if (!may("train")) {
    alertCount.value = null;
    return;
  }
  try {
    const found = await get<AlertCount>("v1/preview/alerts/count");
    if (session.value?.id === asked) alertCount.value = found;
  } catch {
    // the next one follows
  }
}

/** Keep the number up to date while the layout is shown. */
export function useAlertCount(): void {
  const key = session.value?.id;
  useEffect(() => {
    alertCount.value = null;
    const ask = () => document.visibilityState === "visible" && void countAlerts();
    ask();
    const timer = setInterval(ask, PERIOD_MS);
    document.addEventListener("visibilitychange", ask);
    return () => {
      clearInterval(timer);
      document.removeEventListener("visibilitychange", ask);
    };
  }, [key]);
}
