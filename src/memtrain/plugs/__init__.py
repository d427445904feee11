"""Bounded memory inside other people's agents: LangChain and LangGraph, LlamaIndex, the Model Context Protocol."""
