/** The form for a new key, and the key, which is shown once. */
import { useState } from "preact/hooks";
import { base, post } from "../../app/api";
import type { Role } from "../../app/session";
import { CopyButton } from "../../components/CopyButton";
import { ErrorBox } from "../../components/ErrorBox";
import { Field } from "../../components/Field";
import { Text } from "../../components/Text";

const ROLES: { role: Role; about: string }[] = [
  { role: "infer", about: "samples from all models of the entity, and sees their names and versions" },
  { role: "train", about: "also trains: sees and changes models, jobs, trajectories and their costs" },
  { role: "admin", about: "also creates and revokes keys" },
];

interface Created {
  name: string;
  role: Role;
  key: string;
}

export function CreateKey({ onCreated }: { onCreated: () => void }) {
  const [name, setName] = useState("");
  const [role, setRole] = useState<Role>("infer");
  const [created, setCreated] = useState<Created | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);

  async function submit(event: Event): Promise<void> {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      setCreated(await post<Created>("v1/preview/keys", { name, role }));
      setName("");
      onCreated();
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }

  return (
    <section class="card" aria-label="Create a key">
      <form onSubmit={submit}>
        <Field label="Name" hint="Who or what uses the key, so that you know later which one to revoke.">
          <input name="name" required maxLength={128} autocomplete="off" value={name} onInput={(event) => setName(event.currentTarget.value)} />
        </Field>
        <fieldset class="roles">
          <legend>Role</legend>
          {ROLES.map((choice) => (
            <label key={choice.role}>
              <input type="radio" name="role" value={choice.role} checked={role === choice.role} onChange={() => setRole(choice.role)} />
              <span><strong>{choice.role}</strong> {choice.about}</span>
            </label>
          ))}
        </fieldset>
        <button type="submit" class="primary" disabled={busy || !name.trim()}>Create key</button>
      </form>
      {error && <ErrorBox error={error} />}
      {created && <Secret of={created} onDone={() => setCreated(null)} />}
    </section>
  );
}

function Secret({ of, onDone }: { of: Created; onDone: () => void }) {
  return (
    <div class="note good secret" role="status">
      <p>
        The key for <strong><Text value={of.name} max={100} /></strong>, role {of.role}. Copy it now: it is never shown again.
      </p>
      <p class="row">
        <code class="key">{of.key}</code>
        <CopyButton text={of.key} of="the key" />
      </p>
      <p>It signs in here, at <code>{base.href}</code>, and in programs, as under <a href="#/start">Start</a>.</p>
      <button type="button" onClick={onDone}>I have copied it</button>
    </div>
  );
}
