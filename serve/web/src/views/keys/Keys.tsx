/** The entity's API keys: create one, see it once, revoke it. */
import { useState } from "preact/hooks";
import { del } from "../../app/api";
import { usePages } from "../../app/resource";
import { session, type Role } from "../../app/session";
import { Badge, type Tone } from "../../components/Badge";
import { Confirm } from "../../components/Dialog";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { Table } from "../../components/Table";
import { Text, plain } from "../../components/Text";
import { Time } from "../../components/Time";
import { CreateKey } from "./CreateKey";

export interface ApiKey {
  id: string;
  name: string;
  entity: string;
  role: Role;
  created_at: string;
  revoked_at: string | null;
}

const TONES: Record<Role, Tone> = { infer: "neutral", train: "info", admin: "warn" };

export function Keys() {
  const keys = usePages<ApiKey>("v1/preview/keys");
  const [revoking, setRevoking] = useState<ApiKey | null>(null);
  const [withRevoked, setWithRevoked] = useState(false);
  const shown = keys.items.filter((key) => withRevoked || key.revoked_at === null);
  const numRevoked = keys.items.length - keys.items.filter((key) => key.revoked_at === null).length;
  return (
    <>
      <h1>Keys</h1>
      <CreateKey onCreated={keys.reload} />
      <h2>Keys of <Text value={session.value?.entity ?? ""} /></h2>
      {keys.error && <ErrorBox error={keys.error} onRetry={keys.reload} />}
      <div class="row">
        <label>
          <input type="checkbox" checked={withRevoked} onChange={(event) => setWithRevoked(event.currentTarget.checked)} /> Also show revoked keys ({numRevoked})
        </label>
      </div>
      {keys.items.length === 0 ? keys.loading && <Loading /> : (
        <Table
          label="Keys"
          rows={shown}
          rowKey={(key) => key.id}
          hasMore={keys.hasMore}
          onEnd={keys.more}
          rowHeight={42}
          rowClass={(key) => (key.revoked_at ? "revoked" : "")}
          columns={[
            { key: "name", label: "Name", cell: (key) => <Text value={key.name} max={60} /> },
            { key: "role", label: "Role", width: "90px", cell: (key) => <Badge tone={TONES[key.role]}>{key.role}</Badge> },
            { key: "created", label: "Created", width: "130px", wide: true, cell: (key) => <Time at={key.created_at} /> },
            { key: "id", label: "Id", wide: true, cell: (key) => <code>{key.id}</code> },
            { key: "action", label: <span class="sr-only">Revoke</span>, width: "150px", cell: (key) => <Action of={key} onRevoke={setRevoking} /> },
          ]}
        />
      )}
      {revoking && <Revoke of={revoking} onClose={() => setRevoking(null)} onDone={keys.reload} />}
    </>
  );
}

function Action({ of, onRevoke }: { of: ApiKey; onRevoke: (key: ApiKey) => void }) {
  if (of.revoked_at) return <>revoked <Time at={of.revoked_at} /></>;
  if (of.id === session.value?.id) return <span class="muted">in use here</span>;
  return <button type="button" class="danger small" aria-label={`Revoke ${plain(of.name)}`} onClick={() => onRevoke(of)}>Revoke</button>;
}

function Revoke({ of, onClose, onDone }: { of: ApiKey; onClose: () => void; onDone: () => void }) {
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);
  async function revoke(): Promise<void> {
    setBusy(true);
    try {
      await del(`v1/preview/keys/${of.id}`);
      onDone();
      onClose();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
      setBusy(false);
    }
  }
  return (
    <Confirm title="Revoke this key?" action="Revoke the key" onClose={onClose} onConfirm={() => void revoke()} busy={busy}>
      <p>
        Programs that use <strong><Text value={of.name} max={200} /></strong> (role {of.role}) get an error from now on. A revoked key can't be restored.
      </p>
      {error && <ErrorBox error={error} />}
    </Confirm>
  );
}
