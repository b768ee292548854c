// Shows /openapi.json as tables.

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
};

const table = (head, rows) =>
  element("table", "", element("tr", "", ...head.map((text) => element("th", text))),
    ...rows.map((cells) => element("tr", "", ...cells.map((text) => element("td", text)))));

function kind(schema) {
  const parts = schema.anyOf ?? [schema];
  return parts.filter((part) => part.type !== "null").map((part) => part.enum?.join(" | ") ?? part.format ?? part.type).join(" | ");
}

const { paths } = await (await fetch("/openapi.json")).json();
for (const [path, methods] of Object.entries(paths)) {
  for (const [method, route] of Object.entries(methods)) {
    const fields = (route.parameters ?? []).map((each) => [each.name, each.in, kind(each.schema), each.description ?? ""]);
    const content = route.requestBody?.content ?? {}, schema = Object.values(content)[0]?.schema;
    for (const [name, value] of Object.entries(schema?.properties ?? {})) {
      const note = `${value.description ?? ""}${schema.required?.includes(name) ? " (required)" : ""}`;
      fields.push([name, "body", kind(value), note]);
    }
    const answers = Object.entries(route.responses).map(([status, answer]) => {
      return [status, answer.description, Object.keys(answer.content ?? {}).join(", ")];
    });
    document.getElementById("routes").append(
      element("h2", `${method.toUpperCase()} ${path}`),
      element("p", route.description ?? ""),
      ...(schema ? [element("p", `Body: ${Object.keys(content).join(" or ")}`)] : []),
      ...(fields.length ? [table(["Field", "In", "Kind", "What"], fields)] : []),
      table(["Status", "Answer", "Content"], answers),
    );
  }
}
