// What is shown, as it stands in the address: #/task/SLUG/TAB?s=0.9&sort=-unbiased&q=word&pick=a,b
export interface State {
  view: string; slug: string; tab: string;
  sparsity: string; device: number; sort: string; query: string; picked: string[];
}

export const TABS = ["ranking", "curves", "groups", "speed", "methods", "hypotheses", "provenance"] as const;

export function readState(hash: string): State {
  const [path, search = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [view = "", slug = "", tab = ""] = path.split("/").map(decoded);
  const given = new URLSearchParams(search);
  return {
    view: view || "home", slug, tab,
    sparsity: given.get("s") ?? "", device: Number(given.get("device") ?? 0) || 0,
    sort: given.get("sort") ?? "", query: given.get("q") ?? "", picked: given.getAll("pick"),
  };
}

function decoded(text: string): string {
  try { return decodeURIComponent(text); } catch { return text; }
}

export function hashOf(state: Partial<State>): string {
  const path = [state.view === "home" ? "" : state.view, state.slug, state.tab].filter(Boolean);
  const given = new URLSearchParams();
  if (state.sparsity) given.set("s", state.sparsity);
  if (state.device) given.set("device", String(state.device));
  if (state.sort) given.set("sort", state.sort);
  if (state.query) given.set("q", state.query);
  for (const label of state.picked ?? []) given.append("pick", label);
  const search = given.toString();
  return `#/${path.map((part) => encodeURIComponent(part as string)).join("/")}${search ? `?${search}` : ""}`;
}
