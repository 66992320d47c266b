/** One answer: its choices as text, or token by token, with the version that gave it and how fast. */
import { useRef, useState } from "preact/hooks";
import { Badge } from "../../components/Badge";
import { ErrorBox } from "../../components/ErrorBox";
import { Text, plain } from "../../components/Text";
import { duration, number } from "../../components/format";
import type { Answer, Choice, Token } from "./chat";

const MAX_SHOWN_TOKENS = 4000;

interface AnswerProps {
  answer: Answer;
  showTokens: boolean;
  /** The choice with which the conversation goes on. */
  chosen: number;
  onChoose: (index: number) => void;
}

export function AnswerView({ answer, showTokens, chosen, onChoose }: AnswerProps) {
  return (
    <div class="answer" aria-busy={answer.state === "waiting" || answer.state === "streaming"}>
      {answer.choices.map((choice, index) => (
        <div key={index} class="answer-choice">
          {answer.choices.length > 1 && (
            <div class="row">
              <button type="button" aria-pressed={index === chosen} onClick={() => onChoose(index)}>Answer {index + 1}</button>
              {index === chosen && <span class="muted">the conversation goes on with it</span>}
            </div>
          )}
          <ChoiceView choice={choice} showTokens={showTokens} />
        </div>
      ))}
      {answer.error && <ErrorBox error={answer.error} />}
      <Status answer={answer} />
    </div>
  );
}

function ChoiceView({ choice, showTokens }: { choice: Choice; showTokens: boolean }) {
  return (
    <>
      {choice.reasoning && <details open><summary class="muted">Reasoning</summary><p class="answer-text muted" dir="auto"><Text value={choice.reasoning} /></p></details>}
      {showTokens && choice.tokens.length > 0 ? <Tokens tokens={choice.tokens} /> : <p class="answer-text" dir="auto"><Text value={choice.text} /></p>}
      {choice.toolCalls.filter(Boolean).map((call, index) => (
        <p key={index} class="answer-call"><Badge tone="info">tool call</Badge> <code><Text value={`${call.function.name}(${call.function.arguments})`} /></code></p>
      ))}
      {choice.finish === "length" && <p class="note warn">Cut off by its limit of tokens.</p>}
    </>
  );
}

function Status({ answer }: { answer: Answer }) {
  const sampling = answer.firstS === null ? 0 : answer.seconds - answer.firstS;
  const speed = sampling > 0.05 && answer.numTokens > 1 ? (answer.numTokens - 1) / sampling : null;
  return (
    <p class="answer-status muted">
      {answer.state === "waiting" && "Waiting for the engine… "}
      {answer.state === "stopped" && "Stopped. "}
      {answer.version !== null && <>version <strong>{answer.version}</strong>{answer.digest && <> (<code>{answer.digest.slice(0, 8)}</code>)</>}, </>}
      {answer.numTokens > 0 && <>{answer.numTokens} tokens, </>}
      {answer.firstS !== null && <>first after {duration(answer.firstS)}, </>}
      {answer.version !== null && <>{duration(answer.seconds)} in all</>}
      {speed !== null && <>, {number(speed, 3)} tokens/s</>}
    </p>
  );
}

/** Tokens coloured by their probability. A click or the focus shows one, and what else the policy might have said. */
function Tokens({ tokens }: { tokens: Token[] }) {
  const [at, setAt] = useState<number | null>(null);
  const line = useRef<HTMLParagraphElement>(null);
  const shown = at === null ? undefined : tokens[at];

  /** The tokens are one stop of the Tab key; arrow keys move between them. */
  function onKeyDown(event: KeyboardEvent): void {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = Math.min(Math.max(0, (at ?? -1) + step), Math.min(tokens.length, MAX_SHOWN_TOKENS) - 1);
    setAt(next);
    const button = line.current?.children[next];
    if (button instanceof HTMLElement) button.focus();
  }

  return (
    <>
      <p ref={line} class="answer-text tokens" dir="auto" role="group" aria-label="Tokens. Arrow keys move between them." onKeyDown={onKeyDown}>
        {tokens.slice(0, MAX_SHOWN_TOKENS).map((token, index) => (
          <button key={index} type="button" class={`token p${bucket(token.logprob)}`} tabIndex={index === (at ?? 0) ? 0 : -1} aria-pressed={index === at} title={`${plain(token.text)}: ${percentOf(token.logprob)}`} onClick={() => setAt(index)}>
            <Text value={token.text} />
          </button>
        ))}
        {tokens.length > MAX_SHOWN_TOKENS && <span class="muted"> … and {tokens.length - MAX_SHOWN_TOKENS} more tokens</span>}
      </p>
      {shown && (
        <div class="token-detail" role="status">
          <p><code><Text value={JSON.stringify(shown.text)} max={80} /></code>{shown.id !== null && <>, id {shown.id}</>}, logprob {number(shown.logprob)}, probability {percentOf(shown.logprob)}</p>
          {shown.others.length > 0 && (
            <ul class="plain">
              {shown.others.map((other, index) => <li key={index}><code><Text value={JSON.stringify(other.text)} max={80} /></code> {percentOf(other.logprob)}</li>)}
            </ul>
          )}
        </div>
      )}
    </>
  );
}

/** 0 for a sure token, 4 for one that was unlikely. */
function bucket(logprob: number): number {
  const p = Math.exp(logprob);
  return p > 0.9 ? 0 : p > 0.5 ? 1 : p > 0.2 ? 2 : p > 0.05 ? 3 : 4;
}

function percentOf(logprob: number): string {
  return `${number(100 * Math.exp(logprob), 3)} %`;
}
