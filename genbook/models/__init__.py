"The families of models, one module per chapter."
