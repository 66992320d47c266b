/** Is anything wrong now, and what to do: open alerts first, then those that are over. */
import { useEffect, useState } from "preact/hooks";
import { countAlerts } from "../../app/alertCount";
import { post } from "../../app/api";
import { useRefresh } from "../../app/refresh";
import { usePages } from "../../app/resource";
import { href, type ViewProps } from "../../app/router";
import { may } from "../../app/session";
import { Empty } from "../../components/Empty";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { AlertCard } from "./AlertCard";
import type { Alert } from "./alert";
import { TestWebhooks } from "./TestWebhooks";

const REFRESH_S = 15;

export function Alerts({ query }: ViewProps) {
  const about = { model_id: query.get("model"), job_id: query.get("job") };
  const open = usePages<Alert>("v1/preview/alerts", { state: "open", ...about }, 50);
  const [withOver, setWithOver] = useState(false);
  useRefresh(open, REFRESH_S);
  useEffect(() => void countAlerts(), [open.items.length]);
  const critical = open.items.filter((alert) => alert.severity === "critical").length;
  const isChosen = about.model_id !== null || about.job_id !== null;
  return (
    <>
      <h1>Alerts</h1>
      {isChosen && <p>Only those about one {about.job_id ? "job" : "model"}. <a href={href("/alerts")}>Show all</a></p>}
      {open.error && <ErrorBox error={open.error} onRetry={open.reload} />}
      {open.items.length > 0 ? (
        <>
          <p role="status">{summary(open.items.length, open.hasMore, critical)}</p>
          <ul class="alerts">
            {urgentFirst(open.items).map((alert) => <AlertCard key={alert.id} alert={alert} onAcknowledge={() => acknowledge(alert, open.reload)} />)}
          </ul>
          {open.hasMore && <button type="button" onClick={open.more}>Show more</button>}
        </>
      ) : open.loading && open.data?.length === 0 && !open.error ? <Loading /> : !open.error && (
        <Empty title="Nothing is wrong">
          Rewards, jobs, queues, engines, learners and the disk are watched. An alert appears here when one of them needs you,
          and at your webhooks (<code>alerts</code> in the configuration).
        </Empty>
      )}
      <h2>
        <label>
          <input type="checkbox" checked={withOver} onChange={(event) => setWithOver(event.currentTarget.checked)} /> Also show alerts that are over
        </label>
      </h2>
      {withOver && <Over about={about} />}
      {may("admin") && <TestWebhooks />}
    </>
  );
}

/** New ones before those that somebody has acknowledged, critical ones before warnings; otherwise the newest first. */
function urgentFirst(alerts: Alert[]): Alert[] {
  const rank = (alert: Alert): number => (alert.acknowledged_at ? 2 : 0) + (alert.severity === "critical" ? 0 : 1);
  return [...alerts].sort((one, other) => rank(one) - rank(other));
}

function summary(count: number, hasMore: boolean, critical: number): string {
  const number = `${count}${hasMore ? " or more" : ""}`;
  const alerts = count === 1 && !hasMore ? "1 alert is open" : `${number} alerts are open`;
  return critical === 0 ? `${alerts}.` : `${alerts}, ${critical} of them critical.`;
}

async function acknowledge(alert: Alert, reload: () => void): Promise<void> {
  await post(`v1/preview/alerts/${alert.id}/acknowledge`, {});
  reload();
  void countAlerts();
}

function Over({ about }: { about: { model_id: string | null; job_id: string | null } }) {
  const over = usePages<Alert>("v1/preview/alerts", { state: "resolved", ...about }, 20);
  if (over.error) return <ErrorBox error={over.error} onRetry={over.reload} />;
  if (over.items.length === 0) return over.loading ? <Loading /> : <p class="muted">There are none.</p>;
  return (
    <>
      <ul class="alerts">{over.items.map((alert) => <AlertCard key={alert.id} alert={alert} />)}</ul>
      {over.hasMore && <button type="button" onClick={over.more}>Show more</button>}
    </>
  );
}
