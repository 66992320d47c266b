/** Sends a test message to the configured webhooks. */
import { useState } from "preact/hooks";
import { post } from "../../app/api";
import { Badge } from "../../components/Badge";
import { ErrorBox } from "../../components/ErrorBox";
import { Text } from "../../components/Text";

interface Tested {
  webhooks: { host: string; state: "delivered" | "failed"; error: string | null }[];
}

export function TestWebhooks() {
  const [tested, setTested] = useState<Tested | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  async function test(): Promise<void> {
    setBusy(true);
    setError(null);
    setTested(null);
    try {
      setTested(await post<Tested>("v1/preview/alerts/test", {}));
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }
  return (
    <section>
      <h2>Webhooks</h2>
      <p class="muted">Addresses under <code>alerts</code> in the service's configuration get a signed message when an alert opens and when it is over.</p>
      <button type="button" disabled={busy} onClick={() => void test()}>Send a test message</button>
      {error && <ErrorBox error={error} />}
      {tested && (
        <ul role="status">
          {tested.webhooks.map((webhook, index) => (
            <li key={index}>
              <Text value={webhook.host} /> <Badge tone={webhook.state === "failed" ? "bad" : "good"}>{webhook.state}</Badge>{" "}
              {webhook.error && <Text value={webhook.error} max={300} />}
            </li>
          ))}
        </ul>
      )}
    </section>
  );
}
