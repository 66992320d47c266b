/** One alert: what is wrong, why, what to do, and where to look. */
import { useState } from "preact/hooks";
import { href, segment } from "../../app/router";
import { Badge, type Tone } from "../../components/Badge";
import { ErrorBox } from "../../components/ErrorBox";
import { Text, plain } from "../../components/Text";
import { Time } from "../../components/Time";
import type { Alert, Delivery, Links } from "./alert";

const TONES: Record<Alert["severity"], Tone> = { critical: "bad", warning: "warn" };

export function AlertCard({ alert, onAcknowledge }: { alert: Alert; onAcknowledge?: () => Promise<void> }) {
  const isOver = alert.state === "resolved";
  return (
    <li class={`card alert ${isOver ? "over" : alert.severity}`}>
      <div class="row">
        <Badge tone={isOver ? "neutral" : TONES[alert.severity]}>{isOver ? "over" : alert.severity}</Badge>
        <h3 class="grow"><Text value={alert.title} max={300} /></h3>
        {onAcknowledge && !alert.acknowledged_at && <Acknowledge alert={alert} onAcknowledge={onAcknowledge} />}
      </div>
      <p><Text value={alert.cause} max={2000} /></p>
      {!isOver && <p><strong>What to do:</strong> <Text value={alert.remedy} max={2000} /></p>}
      <Where links={alert.links} />
      <p class="muted">
        Opened <Time at={alert.opened_at} />
        {isOver && <>, over <Time at={alert.resolved_at} /></>}
        {alert.acknowledged_at && <>, acknowledged <Time at={alert.acknowledged_at} /></>}
        {alert.scope === "service" && <>, of the whole service</>}
        {" "}· <code>{alert.kind}</code>
      </p>
      {alert.deliveries && alert.deliveries.length > 0 && <Deliveries of={alert.deliveries} />}
    </li>
  );
}

function Acknowledge({ alert, onAcknowledge }: { alert: Alert; onAcknowledge: () => Promise<void> }) {
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  async function click(): Promise<void> {
    setBusy(true);
    try {
      await onAcknowledge();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }
  return (
    <>
      <button type="button" disabled={busy} aria-label={`Acknowledge: ${plain(alert.title)}`} onClick={() => void click()}>Acknowledge</button>
      {error && <ErrorBox error={error} />}
    </>
  );
}

function Where({ links }: { links: Links }) {
  const { model_id: model, job_id: job, step, best_step: best } = links;
  const places: { label: string; to: string }[] = [];
  if (job) places.push({ label: "Job", to: href(`/jobs/${segment(job)}`) });
  if (model) {
    const id = segment(model);
    places.push({ label: "Model", to: href(`/models/${id}`) });
    if (step !== null) places.push({ label: `Groups of version ${step}`, to: href(`/models/${id}/groups`, { step }) });
    if (best !== null) places.push({ label: `Groups of version ${best}`, to: href(`/models/${id}/groups`, { step: best }) });
  }
  if (links.base_model) places.push({ label: "Engines and learners", to: href("/cluster") });
  if (places.length === 0) return null;
  return <p class="row places">{places.map((place) => <a key={place.to} href={place.to}>{place.label}</a>)}</p>;
}

function Deliveries({ of }: { of: Delivery[] }) {
  return (
    <details>
      <summary>Messages to webhooks ({of.length})</summary>
      <ul>
        {of.map((message) => (
          <li key={message.id}>
            {message.event} to <Text value={message.host} />: {message.state}
            {message.num_attempts > 1 && <>, {message.num_attempts} attempts</>}
            {message.error && <>. <Text value={message.error} max={300} /></>}
          </li>
        ))}
      </ul>
    </details>
  );
}
