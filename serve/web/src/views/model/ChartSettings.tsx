/** How curves are drawn: smoothing, scale and axis. They are in the address, so that a link shows the same. */
import { setQuery } from "../../app/router";

export interface Drawn {
  smoothing: number;
  log: boolean;
  byTime: boolean;
}

export function drawnBy(query: URLSearchParams): Drawn {
  const smoothing = Number(query.get("smooth"));
  return {
    smoothing: smoothing > 0 && smoothing < 1 ? smoothing : 0,
    log: query.get("scale") === "log",
    byTime: query.get("axis") === "time",
  };
}

export function ChartSettings({ drawn, timeLabel = "Time" }: { drawn: Drawn; timeLabel?: string }) {
  return (
    <div class="row chart-settings" role="group" aria-label="How curves are drawn">
      <label>
        Smoothing{" "}
        <input
          type="range"
          min="0"
          max="0.98"
          step="0.02"
          value={drawn.smoothing}
          onInput={(event) => setQuery({ smooth: Number(event.currentTarget.value) || null })}
        />{" "}
        <output>{drawn.smoothing.toFixed(2)}</output>
      </label>
      <span class="choice" role="group" aria-label="Horizontal axis">
        <button type="button" aria-pressed={!drawn.byTime} onClick={() => setQuery({ axis: null })}>Version</button>
        <button type="button" aria-pressed={drawn.byTime} onClick={() => setQuery({ axis: "time" })}>{timeLabel}</button>
      </span>
      <span class="choice" role="group" aria-label="Vertical scale">
        <button type="button" aria-pressed={!drawn.log} onClick={() => setQuery({ scale: null })}>Linear</button>
        <button type="button" aria-pressed={drawn.log} onClick={() => setQuery({ scale: "log" })}>Log</button>
      </span>
    </div>
  );
}
