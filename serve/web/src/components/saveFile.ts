/** Downloads of files that may be large: a link of ten minutes, so that the browser itself saves the file as it comes. */
import { base, post } from "../app/api";

/** Save the answer to a GET, such as "/v1/files/ID/content". Throws ApiError if the key may not have it. */
export async function saveFile(path: string): Promise<void> {
  const { url } = await post<{ url: string }>("v1/preview/downloads", { path });
  const link = document.createElement("a");
  link.href = new URL(url, base).href;
  link.download = "";
  link.click();
}
