// The server's HTTP API. The token comes in the address behind #, which browsers never send.

const given = new URLSearchParams(location.hash.slice(1)).get("token");
if (given) {
  sessionStorage.setItem("token", given);
  history.replaceState(null, "", location.pathname);
}

function headers() {
  const token = sessionStorage.getItem("token");
  return token ? { Authorization: `Bearer ${token}` } : {};
}

async function reason(response) {
  let text = response.statusText || `status ${response.status}`;
  try {
    text = (await response.json()).detail;
  } catch {
    // no JSON: the status must do
  }
  if (response.status === 401) return "This server wants its token: open the address that it printed.";
  if (response.status === 429) return `The server is busy. Try again in ${response.headers.get("Retry-After")} s.`;
  return text[0].toUpperCase() + text.slice(1) + ".";
}

async function post(path, fields, signal, extra = {}) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value instanceof Blob) form.append(name, value, name);
    else form.append(name, value);
  }
  let response;
  try {
    response = await fetch(path, { method: "POST", body: form, signal, headers: { ...headers(), ...extra } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw new Error(await reason(response));
  return response.blob();
}

// Fill the hole; onProgress gets {state, ahead, passes, expected} while it lasts.
export async function fill(image, mask, signal, onProgress) {
  const id = crypto.getRandomValues(new Uint32Array(4)).join("-").slice(0, 64);
  const timer = setInterval(async () => {
    const response = await fetch(`/api/v1/progress/${id}`, { headers: headers() }).catch(() => null);
    if (response?.ok) onProgress(await response.json());
  }, 400);
  try {
    return await post("/api/v1/inpaint", { image, mask, format: "png", draft: true }, signal, { "X-Request-ID": id });
  } finally {
    clearInterval(timer);
  }
}

export const convert = (image, format, signal) => post("/api/v1/convert", format ? { image, format } : { image }, signal);

export const structure = (image, mask, kind, signal) => post("/api/v1/structure", { image, mask, kind }, signal);
