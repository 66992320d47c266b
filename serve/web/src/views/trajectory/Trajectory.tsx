/** A trajectory: where it is from, its turns, and its tokens as they were trained. */
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { ApiError } from "../../app/api";
import { useGet, type Resource } from "../../app/resource";
import { href, segment, type ViewProps } from "../../app/router";
import { Badge } from "../../components/Badge";
import { ErrorBox } from "../../components/ErrorBox";
import { Loading } from "../../components/Loading";
import { count, number } from "../../components/format";
import { Text, TextBlock } from "../../components/Text";
import { Time } from "../../components/Time";
import { Conversation } from "./Conversation";
import { Tokens } from "./Tokens";
import { fields, turnsOf } from "./turns";
import { CHUNK } from "./tokenStore";
import type { TrajectoryTokens, Whole } from "./types";

const MANY_TURNS = 60;

export function Trajectory({ params, query }: ViewProps) {
  const id = params["id"] ?? "";
  const [source = "", group = "0", index = "0"] = id.split(".");
  const path = `v1/preview/trajectories/${segment(id)}`;
  const whole = useGet<Whole>(path);
  const sent = query.get("sent") === "1" ? true : null;
  // The chunk with the token of the address, so that it is there at once.
  const start = Math.floor(Number(query.get("token") ?? 0) / CHUNK) * CHUNK || 0;
  const tokens = useGet<TrajectoryTokens>(`${path}/tokens`, { limit: CHUNK, start: useFirst(id, start), as_sent: sent });
  return (
    <div class="trajectory">
      <h1>Trajectory {index} <span class="muted">of group {group}</span></h1>
      <Facts id={id} source={source} group={group} index={Number(index)} whole={whole} tokens={tokens.data} />
      <Outcome of={tokens} id={id} />
      {whole.error && <ErrorBox error={whole.error} onRetry={whole.reload} />}
      {whole.data ? <Turns whole={whole.data} /> : whole.loading && <Loading />}
      {tokens.data && tokens.data.num_tokens > 0 && <Tokens key={id} whole={tokens.data} query={query} />}
      {tokens.loading && !tokens.data && <Loading />}
    </div>
  );
}

/** Return the first value for an id: later selections don't load the view again. */
function useFirst(id: string, value: number): number {
  const first = useRef({ id, value });
  if (first.current.id !== id) first.current = { id, value };
  return first.current.value;
}

function Facts(props: { id: string; source: string; group: string; index: number; whole: Resource<Whole>; tokens: TrajectoryTokens | null }) {
  const { whole, tokens } = props;
  const data = whole.data;
  const modelId = data?.model_id ?? tokens?.model_id ?? null;
  const isJob = (data?.job_id ?? tokens?.job_id ?? null) !== null;
  const size = data?.group_statistics.size ?? null;
  const at = (index: number): string => href(`/trajectories/${segment(`${props.source}.${props.group}.${index}`)}`);
  const made = data?.made_version ?? tokens?.made_version ?? null;
  return (
    <>
      <nav class="row" aria-label="Neighbours">
        {props.index > 0 && <a class="button" href={at(props.index - 1)}>‹ Previous</a>}
        {size !== null && props.index + 1 < size && <a class="button" href={at(props.index + 1)}>Next ›</a>}
        {isJob && <a class="button" href={href(`/jobs/${segment(props.source)}/groups/${segment(props.group)}`)}>The group side by side</a>}
        {isJob && <a href={href(`/jobs/${segment(props.source)}`)}>Job</a>}
        {modelId && <a href={href(`/models/${segment(modelId)}`)}>Model</a>}
      </nav>
      {data && (
        <dl class="facts">
          <dt>Reward</dt>
          <dd>
            <strong>{number(data.reward)}</strong>
            {data.group_statistics.reward_mean !== null && <span class="muted"> group mean {number(data.group_statistics.reward_mean)} ± {number(data.group_statistics.reward_std_dev, 3)}</span>}
          </dd>
          {tokens?.state === "trained" && (
            <>
              <dt>Advantage</dt>
              <dd>{number(tokens.sequences[0]?.advantage ?? null)}</dd>
            </>
          )}
          <dt>Sampled by</dt>
          <dd>{versionsText(data.first_version, data.last_version)}{made !== null && <>; trained into version {made}</>}</dd>
          <dt>Turns</dt>
          <dd>{count(data.num_turns)}, {count(data.num_tool_calls)} tool calls, {count(data.num_tokens)} sampled tokens</dd>
          <dt>Received</dt>
          <dd><Time at={data.created_at} /></dd>
          {Object.entries(data.metrics).map(([name, value]) => (
            <Fact key={`metric ${name}`} name={name}>{number(value)}</Fact>
          ))}
          {Object.entries(data.metadata).map(([name, value]) => (
            <Fact key={`metadata ${name}`} name={name}><Text value={value} max={300} /></Fact>
          ))}
        </dl>
      )}
      {data?.error && <p class="note bad"><strong>Error:</strong> <Text value={data.error} max={2000} /></p>}
    </>
  );
}

function Fact({ name, children }: { name: string; children: ComponentChildren }) {
  return (
    <>
      <dt><Text value={name} max={60} /></dt>
      <dd>{children}</dd>
    </>
  );
}

function versionsText(from: number | null, to: number | null): string {
  if (from === null) return "an unknown version";
  return to === null || to === from ? `version ${from}` : `versions ${from} to ${to}`;
}

/** Whether it was trained; if not, why, and what to do. */
function Outcome({ of, id }: { of: Resource<TrajectoryTokens>; id: string }) {
  if (of.error instanceof ApiError && [404, 409, 410].includes(of.error.status)) {
    return (
      <p class="note warn" role="status">
        <strong>No tokens to show.</strong> <Text value={of.error.message} /> {of.error.status === 409 && <button type="button" class="quiet" onClick={of.reload}>Try again</button>}
        {of.error.status !== 404 && <> <a href={href(`/trajectories/${segment(id)}`, { sent: 1 })}>Show the tokens that it was sent with</a></>}
      </p>
    );
  }
  if (of.error) return <ErrorBox error={of.error} onRetry={of.reload} />;
  const data = of.data;
  if (!data) return null;
  const unknown = data.num_choices_without_ids;
  return (
    <>
      {data.state === "not_trained" && (
        <p class="note warn" role="status">
          {data.reason !== "as_sent" && <Badge tone="warn">not trained</Badge>} <Text value={data.message ?? "It trained nothing."} />
        </p>
      )}
      {data.state === "logged" && <p class="note">It was logged, not sent to train on: its tokens have the sampler's logprobs only.</p>}
      {unknown > 0 && <p class="note warn">{unknown} sampled turns don't say their tokens. Sample with <code>return_token_ids=true</code>.</p>}
      {data.num_tokens === 0 && <p class="muted">It has no tokens to show.</p>}
    </>
  );
}

function Turns({ whole }: { whole: Whole }) {
  const turns = turnsOf(whole.trajectory);
  const logs = fields(whole.trajectory)["logs"];
  const lines = Array.isArray(logs) ? logs.filter((line): line is string => typeof line === "string") : [];
  return (
    <section aria-label="Turns">
      <h2>Turns <span class="muted">{count(turns.length)}</span></h2>
      {turns.length === 0 && <p class="muted">It has no messages.</p>}
      {turns.length <= MANY_TURNS ? (
        <Conversation turns={turns} id={whole.id} />
      ) : (
        <>
          <Conversation turns={turns.slice(0, MANY_TURNS / 2)} id={whole.id} />
          <details>
            <summary>{count(turns.length - MANY_TURNS)} more turns</summary>
            <Conversation turns={turns.slice(MANY_TURNS / 2, -MANY_TURNS / 2)} id={whole.id} />
          </details>
          <Conversation turns={turns.slice(-MANY_TURNS / 2)} id={whole.id} />
        </>
      )}
      {lines.length > 0 && (
        <details>
          <summary>{count(lines.length)} lines of its log</summary>
          <TextBlock value={lines.join("\n")} label="Log of the trajectory" />
        </details>
      )}
    </section>
  );
}
