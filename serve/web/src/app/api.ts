/** Requests to the service. Paths are relative to the page, so that it works behind a prefix. */
import { notice, session, signOut } from "./session";

export type Params = Record<string, string | number | boolean | null | undefined | readonly (string | number)[]>;

/** A list in parts: while `has_more`, ask with `after: last_id`. */
export interface Page<T> {
  data: T[];
  first_id: string | null;
  last_id: string | null;
  has_more: boolean;
}

/** An error of the service, or of the way to it (status 0). */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string | null,
    message: string,
    readonly requestId: string | null = null,
  ) {
    super(message);
    this.name = "ApiError";
  }
}

/** The address of the service, with a slash at its end. */
export const base = new URL(".", document.baseURI);

/** Return the address of a path such as "v1/preview/models". */
export function url(path: string, params: Params = {}): URL {
  const address = new URL(path.replace(/^\//, ""), base);
  for (const [name, value] of Object.entries(params)) {
    if (value === null || value === undefined || value === "") continue;
    for (const item of Array.isArray(value) ? value : [value]) address.searchParams.append(name, String(item));
  }
  return address;
}

interface Options {
  signal?: AbortSignal;
  /** Send another key than the one in use. */
  key?: string;
  headers?: Record<string, string>;
}

/** Send a request and return its response. Throws ApiError. */
export async function send(method: string, address: URL, body?: unknown, options: Options = {}): Promise<Response> {
  const key = options.key ?? session.value?.key;
  const headers: Record<string, string> = { accept: "application/json", ...options.headers };
  if (key) headers["authorization"] = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const request: RequestInit = { method, headers, credentials: "omit", signal: options.signal ?? null };
  if (body !== undefined) request.body = JSON.stringify(body);
  let response: Response;
  try {
    response = await fetch(address, request);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(0, "unreachable", "The service doesn't answer. Check that it runs and that this machine reaches it.");
  }
  if (response.ok) return response;
  const failure = await failureOf(response);
  if (failure.status === 401 && options.key === undefined && key === session.value?.key) {
    signOut();
    notice.value = `${failure.message} Sign in with another key.`;
  }
  throw failure;
}

async function failureOf(response: Response): Promise<ApiError> {
  const id = response.headers.get("x-request-id");
  try {
    const body: unknown = await response.json();
    const { message, code } = described(body);
    return new ApiError(response.status, code, message, id);
  } catch {
    return new ApiError(response.status, null, `The service answered ${response.status} ${response.statusText}.`, id);
  }
}

/** Message and code of an error's body, in the shape of the API or of training-job-configs. */
function described(body: unknown): { message: string; code: string | null } {
  const whole = body as { error?: { message: string; code: string | null }; error_msg?: string; error_message?: string; error_code?: string };
  if (whole.error) return { message: whole.error.message, code: whole.error.code };
  const message = whole.error_msg ?? whole.error_message;
  if (message === undefined) throw new TypeError("no error");
  return { message, code: whole.error_code ?? null };
}

export async function get<T>(path: string, params?: Params, options?: Options): Promise<T> {
  return (await (await send("GET", url(path, params), undefined, options)).json()) as T;
}

export async function post<T>(path: string, body: unknown, options?: Options): Promise<T> {
  return (await (await send("POST", url(path), body, options)).json()) as T;
}

export async function put<T>(path: string, body: unknown, options?: Options): Promise<T> {
  return (await (await send("PUT", url(path), body, options)).json()) as T;
}

export async function del<T>(path: string, params?: Params, options?: Options): Promise<T> {
  return (await (await send("DELETE", url(path, params), undefined, options)).json()) as T;
}

/** Save the answer to a GET as a file. The key is in a header, so a plain link can't download it. */
export async function download(path: string, name: string, params?: Params): Promise<void> {
  const blob = await (await send("GET", url(path, params), undefined, { headers: { accept: "*/*" } })).blob();
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
