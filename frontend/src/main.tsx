// The page: what the address asks for is shown; what is chosen is written into the address.
import { render } from "preact";
import { useEffect, useLayoutEffect, useState } from "preact/hooks";
import "./style.css";
import { whenLoaded, type Board } from "./data";
import { Home } from "./home";
import { About, Changes, MethodPage } from "./pages";
import { hashOf, readState, type State } from "./state";
import { TaskPage } from "./task";

function App(props: { board: Board }) {
  const { board } = props;
  const [state, setState] = useState(() => readState(location.hash));
  // At once, not after the first paint: an address that changes in between would never be followed.
  useLayoutEffect(() => {
    const moved = () => { setState(readState(location.hash)); window.scrollTo(0, 0); };
    window.addEventListener("hashchange", moved);
    return () => window.removeEventListener("hashchange", moved);
  }, []);
  useEffect(() => { document.title = titleOf(board, state); }, [state]);
  // A choice within a view replaces the address: going back leaves the view.
  const set = (change: Partial<State>) => {
    const next = { ...state, ...change };
    setState(next);
    history.replaceState(null, "", hashOf(next));
  };
  const task = board.tasks.find((one) => one.slug === state.slug);
  return (<>
    <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById(document.getElementById("ranking") ? "ranking" : "main")?.focus(); }}>Skip to the content</a>
    <header>
      <h1><a href="#/">PruneBench</a></h1>
      <nav aria-label="Site">
        <a href="#/" aria-current={state.view === "home" ? "page" : undefined}>All tasks</a>
        {board.tasks.length > 0 && <a href={hashOf({ view: "task", slug: (task ?? board.tasks[0]).slug })} aria-current={state.view === "task" ? "page" : undefined}>Task</a>}
        <a href="#/about" aria-current={state.view === "about" ? "page" : undefined}>How to read</a>
        {board.changes && <a href="#/changes" aria-current={state.view === "changes" ? "page" : undefined}>Changes</a>}
      </nav>
    </header>
    <main id="main" tabIndex={-1}>
      {state.view === "task" && task ? <TaskPage key={task.slug} board={board} task={task} state={state} set={set} />
        : state.view === "method" ? <MethodPage board={board} label={state.slug} />
        : state.view === "about" ? <About board={board} />
        : state.view === "changes" ? <Changes board={board} />
        : <Home board={board} state={state} set={set} />}
    </main>
  </>);
}

function titleOf(board: Board, state: State): string {
  const name = state.view === "task" ? board.tasks.find((task) => task.slug === state.slug)?.title : state.view === "method" ? state.slug : "";
  return name ? `${name} · PruneBench` : "PruneBench leaderboard";
}

whenLoaded<Board>("board", (board) => {
  const root = document.getElementById("app");
  if (root) { root.replaceChildren(); render(<App board={board} />, root); }
});
