/** The sign-in form. The key is checked by the service, and kept in this browser. */
import { useState } from "preact/hooks";
import { Field } from "../components/Field";
import { ErrorBox } from "../components/ErrorBox";
import { Badge } from "../components/Badge";
import { Text } from "../components/Text";
import { get } from "./api";
import { keys, notice, signIn, signOut, use, type StoredKey } from "./session";

type Me = Omit<StoredKey, "key">;

export function SignIn() {
  const [key, setKey] = useState("");
  const [error, setError] = useState<Error | null>(null);
  const [busy, setBusy] = useState(false);

  async function submit(event: Event): Promise<void> {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const trimmed = key.trim();
      signIn({ ...(await get<Me>("v1/preview/me", {}, { key: trimmed })), key: trimmed });
    } catch (failure) {
      setError(failure instanceof Error ? failure : new Error(String(failure)));
    } finally {
      setBusy(false);
    }
  }

  return (
    <main class="sign-in">
      <h1>Tandem</h1>
      <p class="muted">Sign in with an API key. The page sees what the key may see, and keeps the key in this browser.</p>
      {notice.value && <p class="note warn" role="alert">{notice.value}</p>}
      <form onSubmit={submit}>
        <Field label="API key" hint="It begins with tdm_. `tandem up` printed the first one; an admin creates others under Keys.">
          <input
            name="key"
            type="password"
            autocomplete="off"
            spellcheck={false}
            required
            autofocus
            value={key}
            onInput={(event) => setKey(event.currentTarget.value)}
          />
        </Field>
        <button class="primary" type="submit" disabled={busy || !key.trim()}>
          {busy ? "Checking…" : "Sign in"}
        </button>
      </form>
      {error && <ErrorBox error={error} />}
      {keys.value.length > 0 && <StoredKeys />}
    </main>
  );
}

function StoredKeys() {
  return (
    <section aria-labelledby="stored-keys">
      <h2 id="stored-keys">Keys in this browser</h2>
      <ul class="plain">
        {keys.value.map((stored) => (
          <li key={stored.id} class="row">
            <button type="button" onClick={() => use(stored.id)}>
              <Text value={`${stored.entity}: ${stored.name}`} />
            </button>
            <Badge>{stored.role}</Badge>
            <button type="button" class="quiet" onClick={() => signOut(stored.id)}>Remove</button>
          </li>
        ))}
      </ul>
    </section>
  );
}
