// Of a block of commands and what they print, the copy button takes the commands: no prompts, no
// output, no remarks (which not every shell passes over).
for (const code of document.querySelectorAll(".language-console code")) {
  let going = false;
  const commands = code.textContent.split("\n").filter((line) => {
    const told = going || line.startsWith("$ ");
    going = told && line.endsWith("\\");
    return told;
  });
  code.dataset.copy = commands
    .map((line) => line.replace(/^\$ /, "").replace(/\s+# .*$/, ""))
    .join("\n");
}
