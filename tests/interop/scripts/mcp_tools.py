"""An MCP server over stdio with one tool."""

from mcp.server.mcpserver import MCPServer

server = MCPServer("numbers")


@server.tool()
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    return a * b


server.run()
