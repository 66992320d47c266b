/** An error, with the service's message and code. */
import { ApiError } from "../app/api";
import { Text } from "./Text";

export function ErrorBox({ error, onRetry }: { error: Error; onRetry?: () => void }) {
  const api = error instanceof ApiError ? error : null;
  return (
    <div class="error-box" role="alert">
      <p><Text value={error.message} /></p>
      {api && api.status > 0 && (
        <p class="muted">
          Status {api.status}{api.code && <>, code <code><Text value={api.code} /></code></>}
          {api.requestId && <>, request <code><Text value={api.requestId} /></code></>}
        </p>
      )}
      {onRetry && <button type="button" onClick={onRetry}>Try again</button>}
    </div>
  );
}
